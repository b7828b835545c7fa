#!lua flags=allow-oom
-- Erases conversations: leaves a tombstone with the last epoch, and tells whoever follows them.
-- KEYS: of each its log (and channel), meta, open, owners, aged. ARGV: the time before which they must have aged (ms),
-- or "" where it is this node that must own them, or nobody; how long a tombstone is kept (ms); what is published;
-- nodes whose conversations are left to them, each followed by a space; this node; then of each its member.
-- Returns of each 1: erased; 0: there is nothing, or it hasn't aged, or is left to its owner; 2: it is another node's.
local before, tombstone_ms, erased, others, me = unpack(ARGV, 1, 5)

local function erase(log, meta, open, owners, aged, member)
  if before ~= '' then
    local time = redis.call('ZSCORE', aged, member)
    if not time or tonumber(time) >= tonumber(before) then
      return 0
    end
  end
  local fence = redis.call('HGET', meta, 'f')
  local epoch, seq, owner, flags = string.match(fence or '0-0 ', '^(%d+)-(%d+) ([^+!?]*)(.*)$')
  if before == '' and owner ~= '' and owner ~= me then
    return 2
  end
  if owner ~= '' and string.find(others, owner .. ' ', 1, true) then
    return 0
  end
  redis.call('ZREM', aged, member)
  if seq == '0' then
    return 0
  end
  redis.call('UNLINK', log, meta)
  redis.call('HSET', meta, 'f', epoch .. '-0 !')
  redis.call('PEXPIRE', meta, tombstone_ms)
  if string.find(flags, '+', 1, true) then
    redis.call('HDEL', open, member)
    if redis.call('HINCRBY', owners, owner, -1) < 1 then
      redis.call('HDEL', owners, owner)
    end
  end
  redis.call('SPUBLISH', log, erased)
  return 1
end

local done = {}
for key = 1, #KEYS, 5 do
  local log, meta, open, owners, aged = unpack(KEYS, key, key + 4)
  done[#done + 1] = erase(log, meta, open, owners, aged, ARGV[#done + 6])
end
return done
