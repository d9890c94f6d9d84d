-- Gives the run to a learner: fences every older one, and makes groups that were leased for steps after its checkpoint
-- ready again. Groups of steps up to the checkpoint stay leased until the commit that follows.
-- Returns {epoch, committed step, version, returned groups, opened (0 or 1)}.
---@param learner string
---@param step number  step of the checkpoint that the learner loaded, 0 without one
---@param groups_per_step number
---@param lease_seconds number
local other = redis.call('HGET', STATE, 'learner')
if other and other ~= learner then
  local seen = tonumber(redis.call('ZSCORE', SEEN, other) or '0')
  if now() - seen < lease_seconds then return redis.error_reply('BUSY ' .. other) end
end
if step < num('committed_step') then return redis.error_reply('BEHIND ' .. num('committed_step')) end
redis.call('ZADD', SEEN, now(), learner)
redis.call('HSET', STATE, 'learner', learner)
local epoch, returned = redis.call('HINCRBY', STATE, 'epoch', 1), 0
local leased = redis.call('HGETALL', LEASED)
for i = 1, #leased, 2 do
  local group_id, s = leased[i], tonumber(leased[i + 1])
  if s > step then
    local g = redis.call('HMGET', group(group_id), 'oldest', 'order', 'absorbed')
    redis.call('HDEL', LEASED, group_id)
    redis.call('DEL', lease_list(s))
    redis.call('ZADD', ready('train'), age(g[1], g[2]), group_id)
    redis.call('ZADD', OPEN, g[3], group_id)
    returned = returned + 1
  end
end
local published = math.min(num('published_step'), step)
redis.call('HSET', STATE, 'published_step', published, 'absorbed', published * groups_per_step + num('dropped'),
  'finished', 0)
-- A version that was sent to actors may have been sampled from, even if its files were never completed.
return {epoch, num('committed_step'), math.max(num('version'), num('offered')), returned, num('opened')}
