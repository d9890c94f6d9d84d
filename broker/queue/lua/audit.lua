-- Accounts for every issued group and every completion; changes nothing. Returns JSON. A group is lost when it is
-- neither committed nor dropped nor held, returned, being judged, ready or leased. A completion is lost when it was
-- offered, is not settled, and is in no queue.
local issued, live, nowhere, waiting = num('issued'), redis.call('ZRANGE', LIVE, 0, -1), 0, 0
local function count_waiting(group_id)
  local g = redis.call('HMGET', group(group_id), 'offered', 'judged', 'short')
  local w = tonumber(g[1] or '0') - tonumber(g[2] or '0') - tonumber(g[3] or '0')
  waiting = waiting + w
  return w
end
for _, group_id in ipairs(live) do
  local somewhere = redis.call('HEXISTS', HELD, group_id) == 1 or redis.call('ZSCORE', RETURNED, group_id)
    or redis.call('ZSCORE', ready('train'), group_id) or redis.call('HEXISTS', LEASED, group_id) == 1
  if count_waiting(group_id) == 0 and not somewhere then nowhere = nowhere + 1 end
end
local evals = redis.call('HGETALL', P .. 'evals')
for i = 1, #evals, 2 do
  if evals[i + 1] ~= 'done' then
    for p = 0, tonumber(evals[i + 1]) - 1 do count_waiting('e' .. evals[i] .. ':' .. p) end
  end
end
local queued = 0
for _, name in ipairs(redis.call('SMEMBERS', P .. 'verifiers')) do
  queued = queued + redis.call('XLEN', stream(name))
end
local committed, dropped = redis.call('BITCOUNT', DONE), redis.call('BITCOUNT', DROPPED)
return cjson.encode({
  issued = issued, committed = committed, dropped = dropped, open = #live, ready = redis.call('ZCARD', ready('train')),
  leased = redis.call('HLEN', LEASED), tickets = redis.call('HLEN', HELD),
  lost_groups = issued - committed - dropped - #live + nowhere, lost_completions = math.max(0, waiting - queued),
  duplicates = num('duplicates'), completions = num('completions:train'), eval_completions = num('completions:eval'),
  trained_completions = num('trained_completions'), dead_letters = num('dead'), retried = num('retried'),
  reissued = num('reissued'), stale = num('dropped:stale'), repeated_offers = num('repeated:offer'),
  repeated_verdicts = num('repeated:verdict'), bytes = num('bytes'), again = redis.call('ZCARD', AGAIN),
  rolled_back = num('rolled_back'), settled = num('committed'), epoch = num('epoch'),
  committed_step = num('committed_step'),
  checkpoint = redis.call('HGET', STATE, 'checkpoint') or '', version = num('version'),
  published_step = num('published_step'), opened = num('opened'), finished = num('finished'),
})
