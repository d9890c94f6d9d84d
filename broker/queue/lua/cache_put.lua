-- Stores verdicts under content hashes. KEYS[1] is the cache's prefix, not a run's. The least recently used verdicts
-- are evicted before anything is written, so that the bound holds at every moment. Returns the number evicted.
-- The cost of an entry: its hash twice, its verdict, and about 200 bytes of Redis's own tables.
---@param most_bytes number  bound on the cost of all entries
---@param verdicts {key: string, body: string}[]
local evicted = 0
local t = redis.call('TIME')
local stamp = t[1] .. string.format('%06d', t[2])
local function cost(key, body) return 2 * #key + #body + 200 end
local bytes = tonumber(redis.call('HGET', P .. 'counts', 'bytes') or '0')
for _, verdict in ipairs(verdicts) do
  local key, body = verdict.key, verdict.body
  if cost(key, body) <= most_bytes and redis.call('HEXISTS', P .. 'verdicts', key) == 0 then
    while bytes + cost(key, body) > most_bytes do
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
