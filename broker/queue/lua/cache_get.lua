-- Verdicts stored under content hashes, shared by the runs of this server. KEYS[1] is the cache's prefix, not a run's.
-- What is found counts as used now. Returns the stored bytes, or false, for each key.
---@param verifier string
---@param keys string[]  content hashes
local replies, hits = {}, 0
local t = redis.call('TIME')
local stamp = t[1] .. string.format('%06d', t[2])
for i, key in ipairs(keys) do
  local body = redis.call('HGET', P .. 'verdicts', key)
  replies[i] = body
  if body then
    hits = hits + 1
    -- pcall: at its memory limit the server refuses to note the use, and the verdict is still good.
    redis.pcall('ZADD', P .. 'used', 'XX', stamp, key)
  end
end
redis.pcall('HINCRBY', P .. 'counts', 'hits:' .. verifier, hits)
redis.pcall('HINCRBY', P .. 'counts', 'misses:' .. verifier, #replies - hits)
return replies
