-- OFFER: completions into their verifier's stream. ARGV: actor, all payloads in one string, then per completion group_id, idx,
-- oldest, newest, verifier, payload length. (One long string crosses the socket and the parser far faster than many short.)
-- Idempotent per (group_id, idx): the mark `o<idx>` admits the first offer only.
local actor, blob, at = ARGV[1], ARGV[2], 1
local groups, group_ids = {}, {}
for i = 3, #ARGV, 6 do
  local g = groups[ARGV[i]]
  if not g then
    g = {fields = {'lane', 'version', 'n'}, marks = {}, set = {}, bytes = 0}
    groups[ARGV[i]], group_ids[#group_ids + 1] = g, ARGV[i]
  end
  g.fields[#g.fields + 1] = 'o' .. ARGV[i + 1]
end
for _, group_id in ipairs(group_ids) do
  local g = groups[group_id]
  local found = redis.call('HMGET', group(group_id), unpack(g.fields))
  g.lane, g.version, g.n = found[1], tonumber(found[2] or '0'), tonumber(found[3] or '0')
  g.held = redis.call('HGET', HELD, group_id) == actor
  for k = 4, #g.fields do g.marks[g.fields[k]] = found[k] end
end
local replies, verifiers, counts, repeated = {}, {}, {train = 0, eval = 0}, 0
for i = 3, #ARGV, 6 do
  local group_id, mark, length = ARGV[i], 'o' .. ARGV[i + 1], tonumber(ARGV[i + 5])
  local oldest, newest, verifier = tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3]), ARGV[i + 4]
  local g, answer = groups[group_id], nil
  if not g.lane then answer = 'stale'
  elseif g.marks[mark] then answer = 'duplicate'
  elseif not g.held then answer = 'stale'
  elseif tonumber(ARGV[i + 1]) >= g.n then answer = 'refused: index outside the group'
  elseif oldest < g.version or (g.lane == 'eval' and newest ~= g.version) then
    answer = 'refused: sampled with version ' .. oldest .. '..' .. newest .. ', ticket of version ' .. g.version
  else
    redis.call('XADD', stream(verifier), '*', 'g', group_id, 'i', ARGV[i + 1], 'v', oldest, 't', 0, 'w', '',
      'p', blob:sub(at, at + length - 1))
    g.marks[mark], verifiers[verifier] = true, true
    g.set[#g.set + 1] = mark
    g.set[#g.set + 1] = 1
    g.bytes = g.bytes + length
    counts[g.lane] = counts[g.lane] + 1
    answer = 'new'
  end
  if answer == 'duplicate' or answer == 'stale' then repeated = repeated + 1 end
  replies[#replies + 1], at = answer, at + length
end
local bytes = 0
for _, group_id in ipairs(group_ids) do
  local g, key = groups[group_id], group(group_id)
  if #g.set > 0 then
    redis.call('HSET', key, unpack(g.set))
    redis.call('HINCRBY', key, 'bytes', g.bytes)
    if redis.call('HINCRBY', key, 'offered', #g.set / 2) == g.n then redis.call('HDEL', HELD, group_id) end
    bytes = bytes + g.bytes
  end
end
add('bytes', bytes)
add('completions:train', counts.train)
add('completions:eval', counts.eval)
add('repeated:offer', repeated)
for verifier in pairs(verifiers) do
  -- With the first entry comes the consumer group: a verifier that joins while Redis is full could not create it.
  if redis.call('SADD', P .. 'verifiers', verifier) == 1 then
    redis.pcall('XGROUP', 'CREATE', stream(verifier), 'verifiers', '0')
  end
end
return replies
