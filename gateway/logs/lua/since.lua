#!lua flags=allow-oom
-- Notes since when a partition may have lost what it had, unless that is noted. KEYS: since of partitions. ARGV: "0",
-- or "" for now.
for _, since in ipairs(KEYS) do
  redis.call('SET', since, ARGV[1] == '' and redis.call('TIME')[1] or ARGV[1], 'NX')
end
return 1
