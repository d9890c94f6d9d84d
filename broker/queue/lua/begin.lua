-- A learner takes the run. ARGV: learner id, step of the checkpoint it loaded, groups_per_step, lease seconds, forced (0/1). Fences every older learner, and gives the groups leased for later steps back.
-- Steps up to the checkpoint stay leased: the commit that follows settles them. Returns {epoch, committed step, version, returned, opened}.
local me, step = ARGV[1], tonumber(ARGV[2])
local other = redis.call('HGET', STATE, 'learner')
if other and other ~= me and ARGV[5] ~= '1' then
  local seen = tonumber(redis.call('ZSCORE', SEEN, other) or '0')
  if now() - seen < tonumber(ARGV[4]) then return redis.error_reply('BUSY ' .. other) end
end
if step < num('committed_step') then return redis.error_reply('BEHIND ' .. num('committed_step')) end
redis.call('ZADD', SEEN, now(), me)
redis.call('HSET', STATE, 'learner', me)
local epoch, returned = redis.call('HINCRBY', STATE, 'epoch', 1), 0
local leased = redis.call('HGETALL', LEASED)
for i = 1, #leased, 2 do
  local group_id, s = leased[i], tonumber(leased[i + 1])
  if s > step then
    local g = redis.call('HMGET', group(group_id), 'oldest', 'order', 'absorbed')
    redis.call('HDEL', LEASED, group_id)
    redis.call('DEL', lease_list(s))
    redis.call('ZADD', ready('train'), tonumber(g[1]) * 4294967296 + tonumber(g[2]), group_id)
    redis.call('ZADD', OPEN, g[3], group_id)
    returned = returned + 1
  end
end
redis.call('HSET', STATE, 'published_step', math.min(num('published_step'), step),
  'absorbed', math.min(num('published_step'), step) * tonumber(ARGV[3]) + num('dropped'), 'finished', 0)
-- A version that was sent to actors has been sampled from, even if its files never came to be.
return {epoch, num('committed_step'), math.max(num('version'), num('offered')), returned, num('opened')}
