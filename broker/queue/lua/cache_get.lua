-- Verdicts known already, shared by the runs of this server. KEYS[1]: the cache's prefix (one hash tag, no run's). ARGV: verifier
-- name, then content hashes. Returns the stored bytes or false for each. What is found counts as used now.
local replies, hits = {}, 0
local t = redis.call('TIME')
local stamp = t[1] .. string.format('%06d', t[2])
for i = 2, #ARGV do
  local body = redis.call('HGET', P .. 'verdicts', ARGV[i])
  replies[#replies + 1] = body
  if body then
    hits = hits + 1
    -- pcall: at its memory limit the server refuses to note the use, and the verdict is still good.
    redis.pcall('ZADD', P .. 'used', 'XX', stamp, ARGV[i])
  end
end
redis.pcall('HINCRBY', P .. 'counts', 'hits:' .. ARGV[1], hits)
redis.pcall('HINCRBY', P .. 'counts', 'misses:' .. ARGV[1], #replies - hits)
return replies
