#!lua flags=no-writes
-- The segments that hold what comes after an entry, the one that holds the next entry first.
-- KEYS: log, meta. ARGV: seq of the entry, about how many bytes, how many segments at most.
local epochs = redis.call('HGET', KEYS[2], 'e')
if not epochs then
  return {}
end
-- Ids are epoch-seq, and epochs never fall: the next entry is in the last epoch that begins at or before it.
local wanted = ARGV[1] + 1
local epoch = 0
for number, first in string.gmatch(epochs, '(%d+):(%d+)') do
  if tonumber(first) > wanted then
    break
  end
  epoch = number
end
local from = epoch .. '-' .. string.format('%d', wanted)
local room, most = tonumber(ARGV[2]), tonumber(ARGV[3])
local segments = {}
local count = 4 -- few at first, as one may be large
while #segments < most do
  local found = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', count)
  for _, entry in ipairs(found) do
    segments[#segments + 1] = entry[2][2]
    room = room - #entry[2][2]
    if room <= 0 then
      return segments
    end
  end
  if #found < count then
    break
  end
  from = '(' .. found[count][1]
  count = math.min(count * 2, 128)
end
return segments
