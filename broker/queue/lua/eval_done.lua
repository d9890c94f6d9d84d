-- An evaluation is written down: free its groups. ARGV: epoch, version.
local refused = fence(ARGV[1])
if refused then return refused end
for _, group_id in ipairs(redis.call('SMEMBERS', ready('eval:' .. ARGV[2]))) do
  redis.call('HINCRBY', STATE, 'bytes', 0 - tonumber(redis.call('HGET', group(group_id), 'bytes') or '0'))
  redis.call('DEL', group(group_id))
end
redis.call('DEL', ready('eval:' .. ARGV[2]))
redis.call('HSET', P .. 'evals', ARGV[2], 'done')
return 1
