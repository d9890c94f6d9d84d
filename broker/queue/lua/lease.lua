-- LEASE: whole groups for one optimiser step, oldest version first. The same step gets the same groups again.
-- Returns the group ids, or an empty list while too few are ready.
---@param epoch number
---@param step number
---@param groups number  how many
---@param groups_per_step number
---@param groups_per_version number
---@param max_staleness number
local refused = fence(epoch)
if refused then return refused end
local leased = redis.call('LRANGE', lease_list(step), 0, -1)
if #leased > 0 then return leased end
-- Admission already keeps every group inside the window (broker/queue/admission.py has the proof). What is outside all
-- the same, because schedule.max_staleness was lowered in a resumed run, is dropped here. The weights that this step
-- starts from contain the groups of all steps before it.
local limit = (max_staleness + 1) * groups_per_version
for _, group_id in ipairs(redis.call('ZRANGE', ready('train'), 0, groups - 1)) do
  local contained = (step - 1) * groups_per_step + num('dropped')
  if contained - tonumber(redis.call('HGET', group(group_id), 'absorbed')) >= limit then
    redis.call('ZREM', ready('train'), group_id)
    drop(group_id, 'stale')
  end
end
if redis.call('ZCARD', ready('train')) < groups then return {} end
local group_ids = redis.call('ZRANGE', ready('train'), 0, groups - 1)
for _, group_id in ipairs(group_ids) do
  redis.call('ZREM', ready('train'), group_id)
  redis.call('ZREM', OPEN, group_id)
  redis.call('HSET', LEASED, group_id, step)
  redis.call('RPUSH', lease_list(step), group_id)
end
return group_ids
