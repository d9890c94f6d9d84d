-- LEASE: whole groups for one optimiser step, oldest version first. The same step gets the same groups again.
-- Returns the group ids, or an empty list while too few are ready.
---@param epoch number
---@param step number
---@param groups number  how many
---@param groups_per_version number
---@param max_staleness number
local refused = fence(epoch)
if refused then return refused end
local leased = redis.call('LRANGE', lease_list(step), 0, -1)
if #leased > 0 then return leased end
-- Admission already keeps every group inside the window (broker/queue/admission.py has the proof). What is outside all
-- the same, because a learner went back to an older checkpoint, is dropped here.
local limit = (max_staleness + 1) * groups_per_version
for _, group_id in ipairs(redis.call('ZRANGE', ready('train'), 0, groups - 1)) do
  if num('absorbed') - tonumber(redis.call('HGET', group(group_id), 'absorbed')) >= limit then
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
