#!lua
-- Appends whatever it is (the rules are those of fencing.py).
-- KEYS: of each append its log (and channel), meta, open, owners, aged. ARGV: this node; then of each: the id it
-- follows, its id, payload, member, time of its last entry (ms), how many turns it opens and ends, those that it opens
-- with their seq, those that it ends.
-- Returns of each 1: written; 0: refused; 2: refused, but the log is so long that it may be there already.
local me = ARGV[1]
local WRITTEN, REFUSED, COMPARE = 1, 0, 2

-- An append that doesn't follow the head: most often it was made already, and the answer got lost.
local function not_following(log, head, head_seq, id, payload)
  if head == id then
    local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)
    if last[1] and last[1][2][2] == payload then
      return WRITTEN
    end
  end
  local last_seq = string.match(id, '%d+$')
  return tonumber(last_seq) <= tonumber(head_seq) and COMPARE or REFUSED
end

local function append(log, meta, open, owners, aged, arg)
  local after, id, payload, member, time = unpack(ARGV, arg, arg + 4)
  local opens, ends = tonumber(ARGV[arg + 5]), tonumber(ARGV[arg + 6])
  local fence = redis.call('HGET', meta, 'f')
  local head_epoch, head_seq, owner, flags = '0', '0', '', ''
  if fence then
    head_epoch, head_seq, owner, flags = string.match(fence, '^(%d+)-(%d+) ([^+!?]*)(.*)$')
  end
  local after_epoch, after_seq = string.match(after, '(%d+)-(%d+)')
  local epoch = string.match(id, '%d+')
  local first = after_seq == '0'
  if (owner ~= '' and owner ~= me)
    or after_seq ~= head_seq
    or (not first and after_epoch ~= head_epoch)
    or tonumber(epoch) < tonumber(head_epoch)
    or (epoch == head_epoch and string.find(flags, '!', 1, true)) then
    return not_following(log, head_epoch .. '-' .. head_seq, head_seq, id, payload)
  end

  if first then
    redis.call('UNLINK', log) -- there is none, unless the server evicted what told of it
    redis.call('PERSIST', meta)
  end
  redis.call('XADD', log, id, 's', payload)
  if first or epoch ~= head_epoch then
    local epochs = not first and redis.call('HGET', meta, 'e') .. ' ' or ''
    redis.call('HSET', meta, 'e', epochs .. epoch .. ':' .. string.format('%d', after_seq + 1))
  end
  local was_open = string.find(flags, '+', 1, true) ~= nil
  local is_open = was_open
  if opens + ends > 0 then
    local turn, change = arg + 7, 0
    for _ = 1, opens do
      change = change + redis.call('HSET', meta, 't:' .. ARGV[turn], ARGV[turn + 1])
      turn = turn + 2
    end
    for _ = 1, ends do
      change = change - redis.call('HDEL', meta, 't:' .. ARGV[turn])
      turn = turn + 1
    end
    is_open = redis.call('HINCRBY', meta, 'n', change) > 0
  end
  redis.call('HSET', meta, 'f', id .. ' ' .. owner .. (is_open and '+' or ''))
  if is_open and not was_open then
    redis.call('HSET', open, member, owner)
    redis.call('HINCRBY', owners, owner, 1)
    redis.call('ZREM', aged, member)
  elseif was_open and not is_open then
    redis.call('HDEL', open, member)
    if redis.call('HINCRBY', owners, owner, -1) < 1 then
      redis.call('HDEL', owners, owner)
    end
  end
  if not is_open then
    redis.call('ZADD', aged, time, member)
  end
  redis.call('SPUBLISH', log, payload)
  return WRITTEN
end

local verdicts = {}
local arg = 2
for key = 1, #KEYS, 5 do
  verdicts[#verdicts + 1] = append(KEYS[key], KEYS[key + 1], KEYS[key + 2], KEYS[key + 3], KEYS[key + 4], arg)
  arg = arg + 7 + 2 * ARGV[arg + 5] + ARGV[arg + 6]
end
return verdicts
