#!lua
-- Appends tokens to turns that are open, which is what happens all the time: in as few commands as can be.
-- KEYS: of each append its log, meta. ARGV: " <node>+"; then of each: the id it follows, its id, payload, channel.
-- Returns the numbers of those that append.lua has to look at: whatever isn't just "my open turn goes on".
local whose = ARGV[1]
local others = {}
local arg = 2
for key = 1, #KEYS, 2 do
  local meta = KEYS[key + 1]
  if redis.call('HGET', meta, 'f') == ARGV[arg] .. whose then
    local id, payload = ARGV[arg + 1], ARGV[arg + 2]
    redis.call('XADD', KEYS[key], id, 's', payload)
    redis.call('HSET', meta, 'f', id .. whose)
    redis.call('SPUBLISH', ARGV[arg + 3], payload)
  else
    others[#others + 1] = (key - 1) / 2
  end
  arg = arg + 4
end
return others
