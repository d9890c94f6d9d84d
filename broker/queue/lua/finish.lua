-- Marks the run as finished.
---@param epoch number
local refused = fence(epoch)
if refused then return refused end
redis.call('HSET', STATE, 'finished', 1)
return 1
