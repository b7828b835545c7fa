#!lua flags=allow-oom
-- Erases conversations: leaves a tombstone with the last epoch, and tells whoever follows them.
-- KEYS: of each its log, meta, open, aged. ARGV: the time before which they must have aged (ms), or "" for no such
-- condition; how long a tombstone is kept (ms); what is published; then of each: member, channel.
-- Returns of each 1: erased; 0: there is nothing, or it hasn't aged.
local before, tombstone_ms, erased = ARGV[1], ARGV[2], ARGV[3]

local function erase(log, meta, open, aged, member, channel)
  if before ~= '' then
    local time = redis.call('ZSCORE', aged, member)
    if not time or tonumber(time) >= tonumber(before) then
      return 0
    end
  end
  redis.call('ZREM', aged, member)
  local fence = redis.call('HGET', meta, 'f')
  local epoch, seq = string.match(fence or '0-0', '^(%d+)-(%d+)')
  if seq == '0' then
    return 0
  end
  redis.call('UNLINK', log, meta)
  redis.call('HSET', meta, 'f', epoch .. '-0 !')
  redis.call('PEXPIRE', meta, tombstone_ms)
  redis.call('HDEL', open, member)
  redis.call('SPUBLISH', channel, erased)
  return 1
end

local done = {}
local arg = 4
for key = 1, #KEYS, 4 do
  done[#done + 1] = erase(KEYS[key], KEYS[key + 1], KEYS[key + 2], KEYS[key + 3], ARGV[arg], ARGV[arg + 1])
  arg = arg + 2
end
return done
