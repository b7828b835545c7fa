#!lua
-- Makes a conversation this node's, if it is nobody's or that of the node that is lost.
-- KEYS: meta, open, owners, since. ARGV: this node, the lost one or "", member, how long a claim of what doesn't exist
-- is kept (ms), how long a tombstone is (ms). Returns all of meta.
local meta, open, owners, since = unpack(KEYS)
local me, lost, member, claim_ms, tombstone_ms = unpack(ARGV)

-- What is there of a conversation that isn't there: nothing; or the tombstone that it might have had, where everything
-- was lost some time ago.
local function never_written()
  local lost_at = redis.call('GET', since)
  local now = redis.call('TIME')[1]
  if not lost_at then
    lost_at = now
    redis.call('SET', since, now)
  end
  if lost_at ~= '0' and (now - lost_at) * 1000 < tonumber(tombstone_ms) then
    return lost_at .. '-0 !'
  end
  return '0-0 '
end

local fence = redis.call('HGET', meta, 'f')
local at, owner, flags = string.match(fence or never_written(), '^(%S+) ([^+!?]*)(.*)$')
if owner == '' or owner == me or owner == lost then
  if not fence or (at == '0-0' and flags == '') then
    redis.call('HSET', meta, 'f', '') -- there has to be a key that can expire
    redis.call('PEXPIRE', meta, owner == lost and lost ~= '' and tombstone_ms or claim_ms)
  end
  if owner == lost and lost ~= '' then
    -- Its last entries may never have come here: a new epoch (SPEC.md 2.2). "?" stays until the next append.
    flags = string.gsub(flags, '[!?]', '') .. '!?'
  end
  redis.call('HSET', meta, 'f', at .. ' ' .. me .. flags)
  if owner ~= me and string.find(flags, '+', 1, true) then
    redis.call('HSET', open, member, me)
    redis.call('HINCRBY', owners, me, 1)
    if redis.call('HINCRBY', owners, owner, -1) < 1 then
      redis.call('HDEL', owners, owner)
    end
  end
end
return redis.call('HGETALL', meta)
