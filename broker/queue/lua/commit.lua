-- COMMIT: a durable checkpoint holds all steps up to `step`. Their groups become tombstones (one bit each); the
-- committed step and the Z statistics advance with them. Idempotent per step. Returns {groups, duplicates}.
---@param epoch number
---@param step number
---@param statistics {prompt: number, packed: string}[]  Z statistics per train prompt
local refused = fence(epoch)
if refused then return refused end
local groups, duplicates = 0, 0
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
  for _, z in ipairs(statistics) do redis.call('HSET', P .. 'z', z.prompt, z.packed) end
end
return {groups, duplicates}
