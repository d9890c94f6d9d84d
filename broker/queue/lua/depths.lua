-- Counts of what waits where; changes nothing. Returns JSON.
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
}
local verify = {}
for _, name in ipairs(redis.call('SMEMBERS', P .. 'verifiers')) do verify[name] = redis.call('XLEN', stream(name)) end
local flight, queue = {}, {}
local held = redis.call('HGETALL', HELD)
for i = 1, math.min(#held, 2000), 2 do
  local g = redis.call('HMGET', group(held[i]), 'lane', 'version')
  if g[1] == 'train' then flight[#flight + 1] = version - tonumber(g[2]) end
end
for _, group_id in ipairs(redis.call('ZRANGE', ready('train'), 0, 999)) do
  queue[#queue + 1] = version - tonumber(redis.call('HGET', group(group_id), 'oldest'))
end
out.staleness_in_flight, out.staleness_in_queue, out.verify = flight, queue, verify
return cjson.encode(out)
