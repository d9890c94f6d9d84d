-- Counts of what waits where, who holds what for how long, and what each queue waits for; changes nothing.
-- Ages are seconds of Redis's own clock: no other clock is compared with it. -1: it has never happened. Returns JSON.
local t = now()
local function since(at) return at and math.max(0, t - tonumber(at)) or -1 end
local version = num('version')
local out = {
  version = version, published_step = num('published_step'), committed_step = num('committed_step'),
  issued = num('issued'), absorbed = num('absorbed'), finished = num('finished'), opened = num('opened'),
  queued_bytes = num('bytes'), dead_letters = num('dead'), reissued = num('reissued'), retried = num('retried'),
  dropped = num('dropped'), stale = num('dropped:stale'), repeated_offers = num('repeated:offer'),
  repeated_verdicts = num('repeated:verdict'), completions_train = num('completions:train'),
  completions_eval = num('completions:eval'), open = redis.call('ZCARD', OPEN),
  returned = redis.call('ZCARD', RETURNED), eval_waiting = redis.call('ZCARD', EVALQ),
  ready = redis.call('ZCARD', ready('train')), leased = redis.call('HLEN', LEASED),
  tickets = redis.call('HLEN', HELD), passed = num('outcome:pass'), failed = num('outcome:fail'),
  learner = redis.call('HGET', STATE, 'learner') or '', ticket_seconds = num('ticket_seconds'),
  offered_seconds = since(redis.call('HGET', STATE, 'offered_at')),
  judged_seconds = since(redis.call('HGET', STATE, 'judged_at')),
  oldest_open = redis.call('ZRANGE', OPEN, 0, 0)[1] or '',
  oldest_absorbed = oldest_absorbed(num('absorbed')),
}

-- What a group needs to be named: who holds it (empty: it waits to be issued again), and for how long.
local function ticket(group_id, holder)
  local g = redis.call('HMGET', group(group_id), 'lane', 'version', 'attempt', 'n', 'offered', 'granted')
  return {holder = holder, group_id = group_id, lane = g[1] or '', attempt = tonumber(g[3] or '0'),
    n = tonumber(g[4] or '0'), offered = tonumber(g[5] or '0'), seconds = math.max(0, since(g[6]))},
    tonumber(g[2] or '0')
end

-- Of each holder the number of its tickets and the oldest; and the ticket that was issued most often.
local flight, leases, often = {}, {}, {}
local held = redis.call('HGETALL', HELD)
for i = 1, math.min(#held, 2000), 2 do
  local one, at = ticket(held[i], held[i + 1])
  if one.lane == 'train' then flight[#flight + 1] = version - at end
  local known = leases[one.holder]
  if not known or one.seconds > known.seconds then leases[one.holder] = one end
  leases[one.holder].count = (known and known.count or 0) + 1
  if one.attempt > (often.attempt or 0) then often = one end
end
for _, group_id in ipairs(redis.call('ZRANGE', RETURNED, 0, 99)) do
  local one = ticket(group_id, '')
  if one.attempt > (often.attempt or 0) then often = one end
end
out.leases, out.most_issued = {}, often.attempt and {often} or {}
for _, one in pairs(leases) do out.leases[#out.leases + 1] = one end

-- Of each verify queue its length, what each consumer holds, and the age of its oldest entry (ids begin with ms).
local verify, queues = {}, {}
for _, name in ipairs(redis.call('SMEMBERS', P .. 'verifiers')) do
  verify[name] = redis.call('XLEN', stream(name))
  local queue = {name = name, waiting = verify[name], holders = {}, oldest_seconds = 0, oldest = '', holder = ''}
  local first = redis.call('XRANGE', stream(name), '-', '+', 'COUNT', 1)[1]
  if first then
    queue.oldest_seconds = math.max(0, t - tonumber(string.match(first[1], '^%d+')) / 1000)
    for j = 1, #first[2], 2 do
      if first[2][j] == 'g' then queue.oldest = first[2][j + 1] end
    end
    local pending = redis.pcall('XPENDING', stream(name), 'verifiers')
    for _, one in ipairs(not pending.err and pending[4] or {}) do queue.holders[one[1]] = tonumber(one[2]) end
    local oldest = redis.pcall('XPENDING', stream(name), 'verifiers', first[1], first[1], 1)
    if not oldest.err and oldest[1] then queue.holder = oldest[1][2] end
  end
  queues[#queues + 1] = queue
end

local queue = {}
for _, group_id in ipairs(redis.call('ZRANGE', ready('train'), 0, 999)) do
  queue[#queue + 1] = version - tonumber(redis.call('HGET', group(group_id), 'oldest'))
end
out.staleness_in_flight, out.staleness_in_queue, out.verify, out.queues = flight, queue, verify, queues
return cjson.encode(out)
