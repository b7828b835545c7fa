#!lua flags=allow-oom
-- Makes a conversation nobody's, if it is this node's. KEYS: meta, open, owners. ARGV: this node, member.
local fence = redis.call('HGET', KEYS[1], 'f')
if not fence then
  return 0
end
local at, owner, flags = string.match(fence, '^(%S+) ([^+!?]*)(.*)$')
if owner ~= ARGV[1] then
  return 0
end
if at == '0-0' and flags == '' then
  redis.call('UNLINK', KEYS[1]) -- it was claimed, and never written
  return 1
end
flags = string.gsub(flags, '%?', '')
redis.call('HSET', KEYS[1], 'f', at .. ' ' .. flags)
if string.find(flags, '+', 1, true) then
  redis.call('HSET', KEYS[2], ARGV[2], '')
  redis.call('HINCRBY', KEYS[3], '', 1)
  if redis.call('HINCRBY', KEYS[3], owner, -1) < 1 then
    redis.call('HDEL', KEYS[3], owner)
  end
end
return 1
