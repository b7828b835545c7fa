#!lua
-- Makes a conversation this node's, if it is nobody's or that of the node that is lost.
-- KEYS: meta, open. ARGV: this node, the lost one or "", member, how long a claim of what doesn't exist is kept (ms).
-- Returns all of meta.
local meta, me, lost = KEYS[1], ARGV[1], ARGV[2]
local fence = redis.call('HGET', meta, 'f') or '0-0 '
local at, owner, flags = string.match(fence, '^(%S+) ([^+!?]*)(.*)$')
if owner == '' or owner == me or owner == lost then
  if owner == lost and owner ~= '' and owner ~= me and string.sub(at, -2) ~= '-0' then
    -- Its last entries may never have come here: a new epoch (SPEC.md 2.2). "?" stays until the next append.
    flags = string.gsub(flags, '[!?]', '') .. '!?'
  end
  redis.call('HSET', meta, 'f', at .. ' ' .. me .. flags)
  if at == '0-0' and flags == '' then
    redis.call('PEXPIRE', meta, ARGV[4])
  end
  if string.find(flags, '+', 1, true) then
    redis.call('HSET', KEYS[2], ARGV[3], me)
  end
end
return redis.call('HGETALL', meta)
