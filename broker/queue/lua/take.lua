-- TICKET: grants groups to an actor. The same token gets the same grant again, so that a lost reply loses no ticket.
-- Returns {version, reason, {group_id, version, attempt, n, missing index, …}, …}. The reason says why the grant is
-- short; it is empty when the room was filled.
---@param actor string
---@param room number  completions wanted; the last group may exceed it
---@param token string  unique per call
---@param groups_per_version number
---@param max_staleness number
---@param max_queued_bytes number
---@param total_groups number  train groups in the whole run
---@param train_prompts number
---@param group_size number
---@param forced_staleness number  versions behind the newest that train groups are sampled with
local aim = math.min(max_staleness, tonumber(redis.call('HGET', STATE, 'admitted') or max_staleness))
redis.call('ZADD', SEEN, now(), actor)

local function describe(group_id)
  local g = redis.call('HMGET', group(group_id), 'version', 'attempt', 'n')
  local n = tonumber(g[3])
  local fields = {}
  for i = 0, n - 1 do fields[i + 1] = 'o' .. i end
  local offered = redis.call('HMGET', group(group_id), unpack(fields))
  local reply = {group_id, tonumber(g[1]), tonumber(g[2]), n}
  for i = 0, n - 1 do if not offered[i + 1] then reply[#reply + 1] = i end end
  return reply
end

local version = math.max(0, num('version') - forced_staleness)
local last = redis.call('HGET', P .. 'grants', actor)
if last then
  local saved = cjson.decode(last)
  if saved.token == token then
    local reply = {version, saved.reason}
    for _, group_id in ipairs(saved.group_ids) do
      if redis.call('HGET', HELD, group_id) == actor then reply[#reply + 1] = describe(group_id) end
    end
    return reply
  end
end
if num('finished') == 1 then return {version, 'run finished'} end

local reply, group_ids, reason, absorbed = {version, ''}, {}, '', num('absorbed')
local function grant(group_id)
  redis.call('HSET', HELD, group_id, actor)
  redis.call('HSET', group(group_id), 'granted', string.format('%.3f', now()))
  redis.call('HINCRBY', group(group_id), 'attempt', 1)
  local ticket = describe(group_id)
  room = room - (#ticket - 4)
  reply[#reply + 1] = ticket
  group_ids[#group_ids + 1] = group_id
end
local function from_queue(queue)
  while room > 0 do
    local first = redis.call('ZRANGE', queue, 0, 0)[1]
    if not first then return end
    redis.call('ZREM', queue, first)
    if redis.call('EXISTS', group(first)) == 1 then grant(first) end
  end
end
from_queue(EVALQ)
from_queue(RETURNED)
-- New train groups, as long as admission allows (broker/queue/admission.py: rules and proof).
while room > 0 do
  local issued = num('issued')
  if issued >= total_groups + num('dropped') then
    reason = 'admission: every group of the run is issued'
  elseif num('bytes') >= max_queued_bytes then
    reason = 'admission: queued bytes at broker.max_queued_bytes'
  elseif issued - oldest_absorbed(absorbed) >= (max_staleness + 1) * groups_per_version then
    reason = 'admission: oldest open group at schedule.max_staleness'
  elseif issued - absorbed >= (aim + 1) * groups_per_version then
    reason = 'admission: effective sample size below schedule.ess_target'
  elseif num('opened') ~= 1 then
    reason = 'learner: no version to sample from yet'
  end
  if reason ~= '' then break end
  -- Numbers that a rollback took back come first; without any, the next number is the count of those issued.
  local order = tonumber(redis.call('ZPOPMIN', AGAIN)[2] or issued)
  local group_id = train_id(order, train_prompts)
  create(group_id, 'train', order, group_size, version, absorbed)
  redis.call('HINCRBY', STATE, 'issued', 1)
  redis.call('ZADD', OPEN, absorbed, group_id)
  redis.call('ZADD', LIVE, order, group_id)
  grant(group_id)
end
reply[2] = reason
redis.call('HSET', P .. 'grants', actor, cjson.encode({token = token, reason = reason, group_ids = group_ids}))
return reply
