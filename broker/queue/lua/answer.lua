-- TRANSFER, an actor's side: registers the actor as a receiver, and records its reply to the current transfer.
-- An answer is recorded while the transfer is open, an acknowledgement while it is the current one. Safe to repeat.
-- Returns {id, version, state, recorded (0 or 1)} of the current transfer.
---@param actor string
---@param ranks number  ranks that the actor would bring; 0 removes it from the receivers
---@param transfer string  id of the transfer that the reply belongs to
---@param kind string  answer, ack, or look (no reply)
---@param text string  the reply
local TRANSFER, recorded = P .. 'transfer', 0
if ranks == 0 then
  redis.call('HDEL', P .. 'receivers', actor)
else
  redis.call('HSET', P .. 'receivers', actor, ranks)
end
local current = redis.call('HMGET', TRANSFER, 'id', 'version', 'state')
if current[1] and current[1] == transfer then
  if kind == 'answer' and current[3] == 'open' then
    redis.call('HSET', P .. 'answers', actor, text)
    recorded = 1
  elseif kind == 'ack' then
    redis.call('HSET', P .. 'acks', actor, text)
    recorded = 1
  end
end
return {current[1] or '', tonumber(current[2] or '0'), current[3] or '', recorded}
