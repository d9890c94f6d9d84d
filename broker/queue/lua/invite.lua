-- TRANSFER, the learner's side. ARGV: epoch, transfer id, version, lease seconds, then fields and their values
-- (state: open | fixed | over). A new id replaces the transfer before it; the same one again only sets its fields.
-- The version counts as used from here on, whatever comes of it: a learner that starts again publishes above it.
-- Returns, per actor that can receive, {actor, ranks, alive (0/1), answer, acknowledgement}.
local refused = fence(ARGV[1])
if refused then return refused end
local TRANSFER, RECEIVERS, ANSWERS, ACKS = P .. 'transfer', P .. 'receivers', P .. 'answers', P .. 'acks'
if redis.call('HGET', TRANSFER, 'id') ~= ARGV[2] then
  redis.call('DEL', TRANSFER, ANSWERS, ACKS)
  redis.call('HSET', TRANSFER, 'id', ARGV[2], 'version', ARGV[3])
  if tonumber(ARGV[3]) > num('offered') then redis.call('HSET', STATE, 'offered', ARGV[3]) end
end
for i = 5, #ARGV, 2 do redis.call('HSET', TRANSFER, ARGV[i], ARGV[i + 1]) end
local reply, t, fixed = {}, now(), redis.call('HGET', TRANSFER, 'state') == 'fixed'
local all = redis.call('HGETALL', RECEIVERS)
for i = 1, #all, 2 do
  local actor = all[i]
  local seen = tonumber(redis.call('ZSCORE', SEEN, actor) or '0')
  local alive, answer = t - seen < tonumber(ARGV[4]), redis.call('HGET', ANSWERS, actor)
  -- Who is dead, or did not answer in time, is asked again once it shows that its loop goes on.
  if not alive or (fixed and not answer) then redis.call('HDEL', RECEIVERS, actor) end
  reply[#reply + 1] = {actor, tonumber(all[i + 1]), alive and 1 or 0, answer or '', redis.call('HGET', ACKS, actor) or ''}
end
return reply
