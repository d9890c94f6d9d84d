-- The run is over. ARGV: incarnation.
local refused = fence(ARGV[1])
if refused then return refused end
redis.call('HSET', STATE, 'finished', 1)
return 1
