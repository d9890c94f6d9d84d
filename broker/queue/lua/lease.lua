-- LEASE: whole groups for one step, oldest version first. ARGV: epoch, step, groups, groups_per_version, max_staleness.
-- The same step gets the same groups again. Returns the group_ids, or an empty list while too few are ready.
local refused = fence(ARGV[1])
if refused then return refused end
local step, want = ARGV[2], tonumber(ARGV[3])
local held = redis.call('LRANGE', lease_list(step), 0, -1)
if #held > 0 then return held end
-- Hard sweep, the last resort: admission already keeps every group inside the window (broker/queue/admission.py has the proof).
local limit, absorbed = (tonumber(ARGV[5]) + 1) * tonumber(ARGV[4]), num('absorbed')
for _, group_id in ipairs(redis.call('ZRANGE', ready('train'), 0, want - 1)) do
  if num('absorbed') - tonumber(redis.call('HGET', group(group_id), 'absorbed')) >= limit then
    redis.call('ZREM', ready('train'), group_id)
    drop(group_id, 'stale')
  end
end
if redis.call('ZCARD', ready('train')) < want then return {} end
local group_ids = redis.call('ZRANGE', ready('train'), 0, want - 1)
for _, group_id in ipairs(group_ids) do
  redis.call('ZREM', ready('train'), group_id)
  redis.call('ZREM', OPEN, group_id)
  redis.call('HSET', LEASED, group_id, step)
  redis.call('RPUSH', lease_list(step), group_id)
end
return group_ids
