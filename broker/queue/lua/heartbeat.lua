-- Records a heartbeat, and reissues the tickets of actors whose heartbeats stopped. The work of dead verifiers returns
-- by its idle time instead (claim.lua), which a living verifier resets. Returns the number of tickets reissued.
---@param id string
---@param body string  the heartbeat as JSON
---@param phase string  `stopped` removes the service
---@param lease_seconds number
local t = now()
-- When the clock of Redis was set back, what was seen "later" was seen now at the latest: the dead live one lease more.
for _, ahead in ipairs(redis.call('ZRANGEBYSCORE', SEEN, '(' .. string.format('%.6f', t), '+inf')) do
  redis.call('ZADD', SEEN, t, ahead)
end
if phase == 'stopped' then
  redis.call('ZREM', SEEN, id)
  redis.call('HDEL', P .. 'services', id)
else
  redis.call('ZADD', SEEN, t, id)
  redis.call('HSET', P .. 'services', id, body)
end
local returned, alive = 0, {}
local held = redis.call('HGETALL', HELD)
for i = 1, #held, 2 do
  local actor = held[i + 1]
  if alive[actor] == nil then
    local seen = redis.call('ZSCORE', SEEN, actor)
    alive[actor] = seen and t - tonumber(seen) < lease_seconds or false
  end
  if not alive[actor] then
    reissue(held[i])
    returned = returned + 1
  end
end
if returned > 0 then redis.call('HINCRBY', STATE, 'reissued', returned) end
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', SEEN, '-inf', t - 30 * lease_seconds)) do
  redis.call('ZREM', SEEN, gone)
  redis.call('HDEL', P .. 'services', gone)
  redis.call('HDEL', P .. 'grants', gone)
end
return returned
