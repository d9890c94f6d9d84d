-- OFFER: completions into their verifier's stream. ARGV: actor, then per completion gid, idx, oldest, newest, verifier, payload.
-- Idempotent per (gid, idx): the mark `o<idx>` admits the first offer only.
local actor, replies = ARGV[1], {}
for i = 2, #ARGV, 6 do
  local gid, idx, oldest, newest = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3])
  local verifier, payload = ARGV[i + 4], ARGV[i + 5]
  local key = group(gid)
  local g = redis.call('HMGET', key, 'lane', 'version', 'n', 'o' .. idx)
  local answer
  if not g[1] then answer = 'stale'
  elseif g[4] then answer = 'duplicate'
  elseif redis.call('HGET', HELD, gid) ~= actor then answer = 'stale'
  elseif tonumber(idx) >= tonumber(g[3]) then answer = 'refused: index outside the group'
  elseif oldest < tonumber(g[2]) or (g[1] == 'eval' and newest ~= tonumber(g[2])) then
    answer = 'refused: sampled with version ' .. oldest .. '..' .. newest .. ', ticket of version ' .. g[2]
  else
    redis.call('XADD', stream(verifier), '*', 'g', gid, 'i', idx, 'v', oldest, 't', 0, 'w', '', 'p', payload)
    redis.call('HSET', key, 'o' .. idx, 1)
    redis.call('HINCRBY', key, 'bytes', #payload)
    redis.call('HINCRBY', STATE, 'bytes', #payload)
    redis.call('HINCRBY', STATE, 'completions:' .. g[1], 1)
    -- With the first entry comes the consumer group: a verifier that joins while Redis is full could not create it.
    if redis.call('SADD', P .. 'verifiers', verifier) == 1 then
      redis.pcall('XGROUP', 'CREATE', stream(verifier), 'verifiers', '0')
    end
    if redis.call('HINCRBY', key, 'offered', 1) == tonumber(g[3]) then redis.call('HDEL', HELD, gid) end
    answer = 'new'
  end
  if answer == 'duplicate' or answer == 'stale' then redis.call('HINCRBY', STATE, 'repeated:offer', 1) end
  replies[#replies + 1] = answer
end
return replies
