#!lua
-- Appends tokens to turns that are open, which is what happens all the time: in as few commands as can be.
-- KEYS: of each append its log, which is also its channel, and meta. ARGV: " <node>+"; then of each: the id it
-- follows, its id, payload.
-- Returns the numbers of those that append.lua has to look at: whatever isn't just "my open turn goes on".
local call = redis.call
local whose = ARGV[1]
local others = {}
local arg = 2
for key = 1, #KEYS, 2 do
  local log, meta = KEYS[key], KEYS[key + 1]
  if call('HGET', meta, 'f') == ARGV[arg] .. whose then
    local id, payload = ARGV[arg + 1], ARGV[arg + 2]
    call('XADD', log, id, 's', payload)
    call('HSET', meta, 'f', id .. whose)
    call('SPUBLISH', log, payload)
  else
    others[#others + 1] = (key - 1) / 2
  end
  arg = arg + 3
end
return others
