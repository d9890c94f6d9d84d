-- TRANSFER, an actor's side. ARGV: actor, ranks it would bring (0: it leaves), transfer id, kind (answer | ack | look), text.
-- An answer counts while its transfer is open, an acknowledgement while it is the current one. Safe to repeat.
-- Returns {id, version, state, took (0/1)}.
local TRANSFER, took = P .. 'transfer', 0
if ARGV[2] == '0' then
  redis.call('HDEL', P .. 'receivers', ARGV[1])
else
  redis.call('HSET', P .. 'receivers', ARGV[1], ARGV[2])
end
local there = redis.call('HMGET', TRANSFER, 'id', 'version', 'state')
if there[1] and there[1] == ARGV[3] then
  if ARGV[4] == 'answer' and there[3] == 'open' then
    redis.call('HSET', P .. 'answers', ARGV[1], ARGV[5])
    took = 1
  elseif ARGV[4] == 'ack' then
    redis.call('HSET', P .. 'acks', ARGV[1], ARGV[5])
    took = 1
  end
end
return {there[1] or '', tonumber(there[2] or '0'), there[3] or '', took}
