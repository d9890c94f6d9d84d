-- JUDGE: verdicts into their groups, atomically with the acknowledgement. Outcomes: pass, fail, error, malformed.
-- Frees (XACK, XDEL) before it writes, so that it also works when Redis is at its memory limit.
-- Returns per verdict done, duplicate, retry (an error, queued again) or dead (dead-lettered).
---@param verifier string
---@param consumer string
---@param attempts number  attempts after which a completion is dead-lettered
---@param verdicts {entry: string, outcome: string, reason: string, body: string}[]
local queue = stream(verifier)
-- Group id and index are those of the queue's entry: the queue, not the caller, says what an entry is.
local entries, seen, groups, group_ids, deaths = {}, {}, {}, {}, redis.call('EXISTS', DEATHS) == 1
for _, v in ipairs(verdicts) do
  local found = not seen[v.entry] and redis.call('XRANGE', queue, v.entry, v.entry)[1]
  if found then
    seen[v.entry], v.f = true, {}
    entries[#entries + 1] = v.entry
    for j = 1, #found[2], 2 do v.f[found[2][j]] = found[2][j + 1] end
    v.group_id, v.idx = v.f.g or '', v.f.i or ''
    v.deaths = deaths and redis.call('HGET', DEATHS, verifier .. ':' .. v.entry) or ''
    if v.outcome == 'pass' or v.outcome == 'fail' then
      local g = groups[v.group_id]
      if not g then
        g = {fields = {'lane', 'oldest', 'version'}, marks = {}, set = {}, judged = 0}
        groups[v.group_id], group_ids[#group_ids + 1] = g, v.group_id
      end
      g.fields[#g.fields + 1] = 'j' .. v.idx
    end
  end
end
if #entries > 0 then
  redis.call('XACK', queue, 'verifiers', unpack(entries))
  redis.call('XDEL', queue, unpack(entries))
  if deaths then
    for _, entry in ipairs(entries) do redis.call('HDEL', DEATHS, verifier .. ':' .. entry) end
  end
end
for _, group_id in ipairs(group_ids) do
  local g = groups[group_id]
  local found = redis.call('HMGET', group(group_id), unpack(g.fields))
  g.lane, g.oldest, g.version = found[1], tonumber(found[2] or math.huge), tonumber(found[3] or '0')
  for k = 4, #g.fields do g.marks[g.fields[k]] = found[k] end
end

local replies, counts, repeated = {}, {pass = 0, fail = 0}, 0
for k, v in ipairs(verdicts) do
  local g = groups[v.group_id]
  if not v.f then
    replies[k], repeated = 'duplicate', repeated + 1
  elseif v.outcome ~= 'pass' and v.outcome ~= 'fail' then
    replies[k] = ''  -- after the groups below: rare, and it reads their counts
  elseif not g.lane then
    replies[k] = 'duplicate'
  elseif g.marks['j' .. v.idx] then
    replies[k], repeated = 'duplicate', repeated + 1
  else
    local set = g.set
    set[#set + 1], set[#set + 2], set[#set + 3], set[#set + 4] = 'j' .. v.idx, v.body, 'c' .. v.idx, v.f.p
    g.marks['j' .. v.idx] = true
    g.oldest, g.judged = math.min(g.oldest, tonumber(v.f.v) or g.version), g.judged + 1
    counts[v.outcome] = counts[v.outcome] + 1
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
if counts.pass + counts.fail > 0 then redis.call('HSET', STATE, 'judged_at', string.format('%.3f', now())) end
add('outcome:pass', counts.pass)
add('outcome:fail', counts.fail)
add('repeated:verdict', repeated)

for k, v in ipairs(verdicts) do
  if replies[k] == '' then
    local f, group_id, used = v.f, v.group_id, (tonumber(v.f.t) or 0) + lines(v.deaths) + 1
    local history = (f.h or '') .. v.deaths .. consumer .. ' ' .. v.outcome .. ' ' .. v.reason .. '\n'
    if redis.call('EXISTS', group(group_id)) == 0 then
      replies[k] = 'duplicate'
      if v.outcome == 'malformed' then
        bury(verifier, f, v.reason, v.body, history)
        replies[k] = 'dead'
      end
    elseif v.outcome == 'error' and used < attempts then
      redis.call('XADD', queue, '*', 'g', group_id, 'i', v.idx, 'v', f.v, 't', used,
        'w', (f.w or '') .. consumer .. ' ', 'h', history, 'p', f.p)
      add('retried', 1)
      replies[k] = 'retry'
    else
      bury(verifier, f, v.reason, v.body, history)
      replies[k] = 'dead'
    end
  end
end
return replies
