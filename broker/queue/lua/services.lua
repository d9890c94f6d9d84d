-- Every service whose heartbeat is recorded. Returns {heartbeat as JSON, seconds since it arrived, …}.
local reply, t = {}, now()
local all = redis.call('HGETALL', P .. 'services')
for i = 1, #all, 2 do
  reply[#reply + 1] = all[i + 1]
  reply[#reply + 1] = string.format('%.3f', math.max(0, t - tonumber(redis.call('ZSCORE', SEEN, all[i]) or '0')))
end
return reply
