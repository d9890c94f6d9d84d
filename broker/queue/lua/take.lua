-- TICKET: grant groups to an actor. ARGV: actor, room (completions), token, groups_per_version, max_staleness,
-- max_queued_bytes, total_groups, train_prompts, group_size, forced_staleness. Returns {version, reason, {group_id, version, attempt, n, missing…}…}.
-- The same token gets the same grant again, so a reply lost on the way loses no ticket.
local actor, room, token = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local per_version, staleness = tonumber(ARGV[4]), tonumber(ARGV[5])
local cap, total, prompts, size = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local admitted = math.min(staleness, tonumber(redis.call('HGET', STATE, 'admitted') or staleness))
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

local version = math.max(0, num('version') - tonumber(ARGV[10] or '0'))
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
while room > 0 do
  local issued = num('issued')
  if issued >= total + num('dropped') then
    reason = 'admission: every group of the run is issued'
  elseif num('bytes') >= cap then
    reason = 'admission: queued bytes at broker.max_queued_bytes'
  elseif issued - oldest_absorbed(absorbed) >= (staleness + 1) * per_version then
    reason = 'admission: oldest open group at schedule.max_staleness'
  elseif issued - absorbed >= (admitted + 1) * per_version then
    reason = 'admission: effective sample size below schedule.ess_target'
  elseif num('opened') ~= 1 then
    reason = 'learner: version 0 not published yet'
  end
  if reason ~= '' then break end
  local group_id = string.format('%d:%d', math.floor(issued / prompts), issued % prompts)
  redis.call('HSET', group(group_id), 'lane', 'train', 'order', issued, 'n', size, 'left', size, 'version', version,
    'absorbed', absorbed, 'attempt', 0, 'bytes', 0)
  redis.call('HINCRBY', STATE, 'issued', 1)
  redis.call('ZADD', OPEN, absorbed, group_id)
  redis.call('ZADD', LIVE, issued, group_id)
  grant(group_id)
end
reply[2] = reason
redis.call('HSET', P .. 'grants', actor, cjson.encode({token = token, reason = reason, group_ids = group_ids}))
return reply
