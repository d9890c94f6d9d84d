-- COMMIT: the checkpoint that is named here holds all steps up to `step`, and from now on it is the one that a learner
-- loads. Their groups become tombstones (one bit each); the committed step and the Z statistics advance with them. The
-- lists of the groups of each step stay as long as an older checkpoint is kept that a rollback could go back to.
-- Idempotent per step. Returns {groups, duplicates}.
---@param epoch number
---@param step number
---@param checkpoint string  its name
---@param keep number  committed checkpoints to keep, this one included
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
end
if step > num('committed_step') then
  redis.call('HSET', STATE, 'committed_step', step, 'checkpoint', checkpoint)
  redis.call('HINCRBY', STATE, 'committed', groups)
  redis.call('HINCRBY', STATE, 'duplicates', duplicates)
  for _, z in ipairs(statistics) do redis.call('HSET', P .. 'z', z.prompt, z.packed) end
  redis.call('HSET', CHECKPOINTS, step,
    checkpoint .. ' ' .. num('committed') .. ' ' .. num('trained_completions'))
  local steps = checkpoint_steps()
  for i = 1, #steps - keep do redis.call('HDEL', CHECKPOINTS, steps[i]) end
  local oldest = steps[math.max(1, #steps - keep + 1)]
  for s = num('listed_step') + 1, oldest do redis.call('DEL', lease_list(s)) end
  redis.call('HSET', STATE, 'listed_step', math.max(num('listed_step'), oldest))
end
return {groups, duplicates}
