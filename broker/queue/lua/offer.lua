-- OFFER: completions into their verifiers' streams. All payloads travel in one string: one long argument crosses the
-- socket and the parser far faster than many short ones. Idempotent per (group_id, idx): the mark `o<idx>` admits the
-- first offer only. Returns per completion new, duplicate, stale, or "refused: " and the reason.
---@param actor string
---@param payloads string  the packed completions, one after another
---@param completions {group_id: string, idx: number, oldest: number, newest: number, verifier: string, bytes: number}[]
local groups, group_ids = {}, {}
for _, c in ipairs(completions) do
  local g = groups[c.group_id]
  if not g then
    g = {fields = {'lane', 'version', 'n'}, marks = {}, set = {}, bytes = 0}
    groups[c.group_id], group_ids[#group_ids + 1] = g, c.group_id
  end
  g.fields[#g.fields + 1] = 'o' .. c.idx
end
for _, group_id in ipairs(group_ids) do
  local g = groups[group_id]
  local found = redis.call('HMGET', group(group_id), unpack(g.fields))
  g.lane, g.version, g.n = found[1], tonumber(found[2] or '0'), tonumber(found[3] or '0')
  g.held = redis.call('HGET', HELD, group_id) == actor
  for k = 4, #g.fields do g.marks[g.fields[k]] = found[k] end
end
local replies, verifiers, counts, repeated, at = {}, {}, {train = 0, eval = 0}, 0, 1
for k, c in ipairs(completions) do
  local g, mark, answer = groups[c.group_id], 'o' .. c.idx, nil
  if not g.lane then answer = 'stale'
  elseif g.marks[mark] then answer = 'duplicate'
  elseif not g.held then answer = 'stale'
  elseif c.idx >= g.n then answer = 'refused: index outside the group'
  elseif c.oldest < g.version or (g.lane == 'eval' and c.newest ~= g.version) then
    answer = 'refused: sampled with version ' .. c.oldest .. '..' .. c.newest .. ', ticket of version ' .. g.version
  else
    redis.call('XADD', stream(c.verifier), '*', 'g', c.group_id, 'i', c.idx, 'v', c.oldest, 't', 0, 'w', '',
      'p', payloads:sub(at, at + c.bytes - 1))
    g.marks[mark], verifiers[c.verifier] = true, true
    g.set[#g.set + 1] = mark
    g.set[#g.set + 1] = 1
    g.bytes = g.bytes + c.bytes
    counts[g.lane] = counts[g.lane] + 1
    answer = 'new'
  end
  if answer == 'duplicate' or answer == 'stale' then repeated = repeated + 1 end
  replies[k], at = answer, at + c.bytes
end
local bytes, last = 0, false
for _, group_id in ipairs(group_ids) do
  local g, key = groups[group_id], group(group_id)
  if #g.set > 0 then
    redis.call('HSET', key, unpack(g.set))
    redis.call('HINCRBY', key, 'bytes', g.bytes)
    if redis.call('HINCRBY', key, 'offered', #g.set / 2) == g.n then
      redis.call('HDEL', HELD, group_id)
      last = redis.call('HGET', key, 'granted') or last
    end
    bytes = bytes + g.bytes
  end
end
if bytes > 0 then redis.call('HSET', STATE, 'offered_at', string.format('%.3f', now())) end
if last then -- what a ticket takes, as a moving average: `sieve status` compares those that are held with it
  local took, mean = math.max(0, now() - tonumber(last)), redis.call('HGET', STATE, 'ticket_seconds')
  if mean then took = 0.9 * tonumber(mean) + 0.1 * took end
  redis.call('HSET', STATE, 'ticket_seconds', string.format('%.3f', took))
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
