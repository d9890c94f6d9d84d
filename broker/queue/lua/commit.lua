-- COMMIT: a durable checkpoint holds these steps. ARGV: epoch, step, then prompt, packed Z statistics pairs.
-- Groups become tombstones (a bit each), Z and step advance with them. Idempotent per step. Returns {groups, duplicates}.
local refused = fence(ARGV[1])
if refused then return refused end
local step, groups, duplicates = tonumber(ARGV[2]), 0, 0
for s = num('committed_step') + 1, step do
  for _, group_id in ipairs(redis.call('LRANGE', lease_list(s), 0, -1)) do
    local g = redis.call('HMGET', group(group_id), 'order', 'bytes', 'short', 'n')
    redis.call('DEL', group(group_id))
    redis.call('HDEL', LEASED, group_id)
    redis.call('ZREM', LIVE, group_id)
    if g[1] then
      redis.call('HINCRBY', STATE, 'bytes', 0 - tonumber(g[2]))
      redis.call('HINCRBY', STATE, 'trained_completions', tonumber(g[4]) - tonumber(g[3] or '0'))
      if redis.call('SETBIT', DONE, g[1], 1) == 1 then duplicates = duplicates + 1 end
    else
      duplicates = duplicates + 1
    end
    groups = groups + 1
  end
  redis.call('DEL', lease_list(s))
end
if step > num('committed_step') then
  redis.call('HSET', STATE, 'committed_step', step)
  redis.call('HINCRBY', STATE, 'committed', groups)
  redis.call('HINCRBY', STATE, 'duplicates', duplicates)
  for i = 3, #ARGV, 2 do redis.call('HSET', P .. 'z', ARGV[i], ARGV[i + 1]) end
end
return {groups, duplicates}
