-- Frees the groups of an evaluation whose results are on disk. Idempotent.
---@param epoch number
---@param version number
local refused = fence(epoch)
if refused then return refused end
local finished = ready('eval:' .. version)
for _, group_id in ipairs(redis.call('SMEMBERS', finished)) do
  redis.call('HINCRBY', STATE, 'bytes', 0 - tonumber(redis.call('HGET', group(group_id), 'bytes') or '0'))
  redis.call('DEL', group(group_id))
end
redis.call('DEL', finished)
redis.call('HSET', P .. 'evals', version, 'done')
return 1
