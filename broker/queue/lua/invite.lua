-- TRANSFER, the learner's side: sets fields of a transfer. A new id replaces the transfer before it, the same id again
-- only sets the fields. From here on the version counts as used, whatever becomes of the transfer: a learner that
-- starts again publishes above it. Safe to repeat.
-- Returns, per registered receiver, {actor, ranks, alive (0 or 1), answer, acknowledgement}.
---@param epoch number
---@param transfer string  its id
---@param version number
---@param lease_seconds number
---@param fields {name: string, value: string}[]  `state` is open, fixed or over
local refused = fence(epoch)
if refused then return refused end
local TRANSFER, RECEIVERS, ANSWERS, ACKS = P .. 'transfer', P .. 'receivers', P .. 'answers', P .. 'acks'
if redis.call('HGET', TRANSFER, 'id') ~= transfer then
  redis.call('DEL', TRANSFER, ANSWERS, ACKS)
  redis.call('HSET', TRANSFER, 'id', transfer, 'version', version)
  if version > num('offered') then redis.call('HSET', STATE, 'offered', version) end
end
for _, field in ipairs(fields) do redis.call('HSET', TRANSFER, field.name, field.value) end
local reply, t, fixed = {}, now(), redis.call('HGET', TRANSFER, 'state') == 'fixed'
local all = redis.call('HGETALL', RECEIVERS)
for i = 1, #all, 2 do
  local actor = all[i]
  local seen = tonumber(redis.call('ZSCORE', SEEN, actor) or '0')
  local alive, answer = t - seen < lease_seconds, redis.call('HGET', ANSWERS, actor)
  -- An actor that is dead or missed the answer is asked again only after it has registered itself anew.
  if not alive or (fixed and not answer) then redis.call('HDEL', RECEIVERS, actor) end
  local ack = redis.call('HGET', ACKS, actor)
  reply[#reply + 1] = {actor, tonumber(all[i + 1]), alive and 1 or 0, answer or '', ack or ''}
end
return reply
