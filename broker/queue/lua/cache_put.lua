-- Verdicts to know from now on. KEYS[1]: the cache's prefix. ARGV: most bytes, then content hash, verdict bytes, …. The least
-- recently used make room, before anything is written, so that the bound holds at every moment. Returns evicted.
-- An entry costs its hash twice, its verdict, and about 200 bytes of Redis's own tables.
local most, evicted = tonumber(ARGV[1]), 0
local t = redis.call('TIME')
local stamp = t[1] .. string.format('%06d', t[2])
local function cost(key, body) return 2 * #key + #body + 200 end
local bytes = tonumber(redis.call('HGET', P .. 'counts', 'bytes') or '0')
for i = 2, #ARGV, 2 do
  local key, body = ARGV[i], ARGV[i + 1]
  if cost(key, body) <= most and redis.call('HEXISTS', P .. 'verdicts', key) == 0 then
    while bytes + cost(key, body) > most do
      local oldest = redis.call('ZPOPMIN', P .. 'used')[1]
      if not oldest then break end
      local old = redis.call('HGET', P .. 'verdicts', oldest)
      redis.call('HDEL', P .. 'verdicts', oldest)
      if old then bytes = bytes - cost(oldest, old) end
      evicted = evicted + 1
    end
    redis.call('HSET', P .. 'verdicts', key, body)
    redis.call('ZADD', P .. 'used', stamp, key)
    bytes = bytes + cost(key, body)
    redis.call('HSET', P .. 'counts', 'bytes', bytes)
  end
end
return evicted
