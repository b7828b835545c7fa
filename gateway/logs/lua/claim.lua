#!lua
-- Makes a conversation this node's, if it is nobody's or that of the node that is lost.
-- KEYS: meta, open, owners. ARGV: this node, the lost one or "", member, how long a claim of what doesn't exist is kept (ms),
-- how long a tombstone is. Returns all of meta.
local meta, me, lost = KEYS[1], ARGV[1], ARGV[2]
local fence = redis.call('HGET', meta, 'f') or '0-0 '
local at, owner, flags = string.match(fence, '^(%S+) ([^+!?]*)(.*)$')
if owner == '' or owner == me or owner == lost then
  local never = at == '0-0' and flags == ''
  if owner == lost and lost ~= '' then
    -- Its last entries may never have come here: a new epoch (SPEC.md 2.2). "?" stays until the next append.
    flags = string.gsub(flags, '[!?]', '') .. '!?'
  end
  redis.call('HSET', meta, 'f', at .. ' ' .. me .. flags)
  if never then
    redis.call('PEXPIRE', meta, flags == '' and ARGV[4] or ARGV[5])
  end
  if owner ~= me and string.find(flags, '+', 1, true) then
    redis.call('HSET', KEYS[2], ARGV[3], me)
    redis.call('HINCRBY', KEYS[3], me, 1)
    if redis.call('HINCRBY', KEYS[3], owner, -1) < 1 then
      redis.call('HDEL', KEYS[3], owner)
    end
  end
end
return redis.call('HGETALL', meta)
