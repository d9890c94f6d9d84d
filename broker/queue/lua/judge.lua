-- JUDGE: verdicts into their groups, atomically with the acknowledgement. ARGV: verifier, consumer, attempts allowed, then
-- per verdict entry, group_id, idx, outcome, reason, verdict bytes. Outcomes: pass, fail, error, malformed.
-- Frees (XACK, XDEL) before it writes, so it also works when Redis is at its memory limit.
local verifier, consumer, allowed = ARGV[1], ARGV[2], tonumber(ARGV[3])
local queue = stream(verifier)
local function bury(group_id, idx, reason, verdict, payload)
  redis.call('XADD', DEAD, '*', 'g', group_id, 'i', idx, 'verifier', verifier, 'reason', reason, 'verdict', verdict, 'p', payload)
  redis.call('HINCRBY', STATE, 'dead', 1)
  if redis.call('EXISTS', group(group_id)) == 1 then
    redis.call('HINCRBY', group(group_id), 'bytes', 0 - #payload)
    redis.call('HINCRBY', STATE, 'bytes', 0 - #payload)
    redis.call('HINCRBY', group(group_id), 'short', 1)
    settle(group_id, 1)
  end
end

-- What the queue holds of these entries: group_id and idx come from the entry itself; the queue, not the caller, says what it is.
local entries, seen, items, groups, group_ids = {}, {}, {}, {}, {}
for i = 4, #ARGV, 6 do
  local entry, outcome = ARGV[i], ARGV[i + 3]
  local found = not seen[entry] and redis.call('XRANGE', queue, entry, entry)[1]
  local item = {outcome = outcome, reason = ARGV[i + 4], verdict = ARGV[i + 5]}
  items[#items + 1] = item
  if found then
    seen[entry], item.f = true, {}
    entries[#entries + 1] = entry
    for j = 1, #found[2], 2 do item.f[found[2][j]] = found[2][j + 1] end
    item.group_id, item.idx = item.f.g or '', item.f.i or ''
    if outcome == 'pass' or outcome == 'fail' then
      local g = groups[item.group_id]
      if not g then
        g = {fields = {'lane', 'oldest', 'version'}, marks = {}, set = {}, judged = 0}
        groups[item.group_id], group_ids[#group_ids + 1] = g, item.group_id
      end
      g.fields[#g.fields + 1] = 'j' .. item.idx
    end
  end
end
if #entries > 0 then
  redis.call('XACK', queue, 'verifiers', unpack(entries))
  redis.call('XDEL', queue, unpack(entries))
end
for _, group_id in ipairs(group_ids) do
  local g = groups[group_id]
  local found = redis.call('HMGET', group(group_id), unpack(g.fields))
  g.lane, g.oldest, g.version = found[1], tonumber(found[2] or math.huge), tonumber(found[3] or '0')
  for k = 4, #g.fields do g.marks[g.fields[k]] = found[k] end
end

local replies, counts, repeated = {}, {pass = 0, fail = 0}, 0
for k, item in ipairs(items) do
  local g = groups[item.group_id]
  if not item.f then
    replies[k], repeated = 'duplicate', repeated + 1
  elseif item.outcome ~= 'pass' and item.outcome ~= 'fail' then
    replies[k] = ''  -- after the groups below: rare, and it looks at their counts
  elseif not g.lane then
    replies[k] = 'duplicate'
  elseif g.marks['j' .. item.idx] then
    replies[k], repeated = 'duplicate', repeated + 1
  else
    local set = g.set
    set[#set + 1], set[#set + 2], set[#set + 3], set[#set + 4] = 'j' .. item.idx, item.verdict, 'c' .. item.idx, item.f.p
    g.marks['j' .. item.idx] = true
    g.oldest, g.judged = math.min(g.oldest, tonumber(item.f.v) or g.version), g.judged + 1
    counts[item.outcome] = counts[item.outcome] + 1
    replies[k] = 'done'
  end
end
for _, group_id in ipairs(group_ids) do
  local g = groups[group_id]
  if g.judged > 0 then
    redis.call('HSET', group(group_id), 'oldest', g.oldest, unpack(g.set))
    redis.call('HINCRBY', group(group_id), 'judged', g.judged)
    settle(group_id, g.judged)
  end
end
add('outcome:pass', counts.pass)
add('outcome:fail', counts.fail)
add('repeated:verdict', repeated)

for k, item in ipairs(items) do
  if replies[k] == '' then
    local f, group_id = item.f, item.group_id
    if redis.call('EXISTS', group(group_id)) == 0 then
      replies[k] = 'duplicate'
      if item.outcome == 'malformed' then
        bury(group_id, item.idx, item.reason, item.verdict, f.p or '')
        replies[k] = 'dead'
      end
    elseif item.outcome == 'error' and tonumber(f.t) + 1 < allowed then
      redis.call('XADD', queue, '*', 'g', group_id, 'i', item.idx, 'v', f.v, 't', tonumber(f.t) + 1, 'w', (f.w or '') .. consumer .. ' ',
        'p', f.p)
      add('retried', 1)
      replies[k] = 'retry'
    else
      bury(group_id, item.idx, item.reason, item.verdict, f.p or '')
      replies[k] = 'dead'
    end
  end
end
return replies
