-- ROLLBACK: goes back to the committed checkpoint of an earlier step, as if nothing had been issued since. Every group
-- of a later step, and every group that is not committed, is taken back: its number waits in `again` and is the next to
-- be granted, sampled anew. What had been dropped stays dropped. No version may be sampled from until the weights that
-- the run went back to are published. Evaluations that are not finished end. Returns {groups untrained, groups
-- discarded}, or an error when there is no such checkpoint.
---@param epoch number
---@param step number  0: back to the base model
---@param groups_per_step number
---@param train_prompts number
---@param statistics {prompt: number, packed: string}[]  Z statistics per train prompt in that checkpoint
local refused = fence(epoch)
if refused then return refused end
local committed, trained, checkpoint = 0, 0, ''
if step > 0 then
  local found = redis.call('HGET', CHECKPOINTS, step)
  if not found then return redis.error_reply('NOCHECKPOINT ' .. step) end
  local c, t
  checkpoint, c, t = string.match(found, '^(%S+) (%d+) (%d+)$')
  committed, trained = tonumber(c), tonumber(t)
end
local discarded, untrained = 0, 0
for _, group_id in ipairs(redis.call('ZRANGE', LIVE, 0, -1)) do
  local g = redis.call('HMGET', group(group_id), 'order', 'bytes')
  redis.call('DEL', group(group_id))
  if g[1] then
    redis.call('ZADD', AGAIN, g[1], group_id)
    redis.call('HINCRBY', STATE, 'bytes', 0 - tonumber(g[2]))
    redis.call('HDEL', HELD, group_id)
    discarded = discarded + 1
  end
end
for _, s in ipairs(redis.call('HVALS', LEASED)) do redis.call('DEL', lease_list(s)) end
redis.call('DEL', LIVE, OPEN, RETURNED, LEASED, ready('train'))
local function untrain(group_id, order)
  if redis.call('SETBIT', DONE, order, 0) == 1 then
    redis.call('ZADD', AGAIN, order, group_id)
    untrained = untrained + 1
  end
end
if step == 0 then
  for order = 0, num('issued') + redis.call('ZCARD', AGAIN) do untrain(train_id(order, train_prompts), order) end
end
for s = step + 1, num('committed_step') do
  for _, group_id in ipairs(redis.call('LRANGE', lease_list(s), 0, -1)) do
    untrain(group_id, order_of(group_id, train_prompts))
  end
  redis.call('DEL', lease_list(s))
end
for _, s in ipairs(checkpoint_steps()) do
  if s > step then redis.call('HDEL', CHECKPOINTS, s) end
end
local evals = redis.call('HGETALL', P .. 'evals')
for i = 1, #evals, 2 do
  if evals[i + 1] ~= 'done' then
    for p = 0, tonumber(evals[i + 1]) - 1 do
      local group_id = 'e' .. evals[i] .. ':' .. p
      redis.call('HINCRBY', STATE, 'bytes', 0 - tonumber(redis.call('HGET', group(group_id), 'bytes') or '0'))
      redis.call('DEL', group(group_id))
      redis.call('HDEL', HELD, group_id)
    end
    redis.call('DEL', ready('eval:' .. evals[i]))
    redis.call('HDEL', P .. 'evals', evals[i])
  end
end
redis.call('DEL', EVALQ, P .. 'z')
for _, z in ipairs(statistics) do redis.call('HSET', P .. 'z', z.prompt, z.packed) end
local absorbed = step * groups_per_step + num('dropped')
redis.call('HSET', STATE, 'committed_step', step, 'checkpoint', checkpoint, 'committed', committed,
  'trained_completions', trained, 'issued', committed + num('dropped'), 'absorbed', absorbed, 'published_step', step,
  'opened', 0, 'finished', 0, 'listed_step', math.min(num('listed_step'), step))
redis.call('HINCRBY', STATE, 'rolled_back', untrained)
return {untrained, discarded}
