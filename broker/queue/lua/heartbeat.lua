-- A sign of life, and the reaper: ARGV id, heartbeat (JSON), phase, lease seconds. What dead or stopped actors held is given to
-- others. Verifier work returns by its own idle time (XAUTOCLAIM), which the living refresh.
local t, lease = now(), tonumber(ARGV[4])
if ARGV[3] == 'stopped' then
  redis.call('ZREM', SEEN, ARGV[1])
  redis.call('HDEL', P .. 'services', ARGV[1])
else
  redis.call('ZADD', SEEN, t, ARGV[1])
  redis.call('HSET', P .. 'services', ARGV[1], ARGV[2])
end
local returned, alive = 0, {}
local held = redis.call('HGETALL', HELD)
for i = 1, #held, 2 do
  local actor = held[i + 1]
  if alive[actor] == nil then
    local seen = redis.call('ZSCORE', SEEN, actor)
    alive[actor] = seen and t - tonumber(seen) < lease or false
  end
  if not alive[actor] then
    reissue(held[i])
    returned = returned + 1
  end
end
if returned > 0 then redis.call('HINCRBY', STATE, 'reissued', returned) end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', SEEN, '-inf', t - 30 * lease)) do
  redis.call('ZREM', SEEN, id)
  redis.call('HDEL', P .. 'services', id)
  redis.call('HDEL', P .. 'grants', id)
end
return returned
