-- The run is over. ARGV: epoch.
local refused = fence(ARGV[1])
if refused then return refused end
redis.call('HSET', STATE, 'finished', 1)
return 1
