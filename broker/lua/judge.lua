-- JUDGE: verdicts into their groups, atomically with the acknowledgement. ARGV: verifier, consumer, attempts allowed, then
-- per verdict entry, gid, idx, outcome, reason, verdict bytes. Outcomes: pass, fail, error, malformed.
-- Frees (XACK, XDEL) before it writes, so it also works when Redis is at its memory limit.
local verifier, consumer, allowed, replies = ARGV[1], ARGV[2], tonumber(ARGV[3]), {}
local queue = stream(verifier)
local function bury(gid, idx, reason, verdict, payload)
  redis.call('XADD', DEAD, '*', 'g', gid, 'i', idx, 'verifier', verifier, 'reason', reason, 'verdict', verdict, 'p', payload)
  redis.call('HINCRBY', STATE, 'dead', 1)
  if redis.call('EXISTS', group(gid)) == 1 then
    redis.call('HINCRBY', group(gid), 'bytes', 0 - #payload)
    redis.call('HINCRBY', STATE, 'bytes', 0 - #payload)
    redis.call('HINCRBY', group(gid), 'short', 1)
    settle(gid)
  end
end
for i = 4, #ARGV, 6 do
  local entry, outcome, reason, verdict = ARGV[i], ARGV[i + 3], ARGV[i + 4], ARGV[i + 5]
  local found = redis.call('XRANGE', queue, entry, entry)
  local answer
  if not found[1] then
    answer = 'duplicate'
    redis.call('HINCRBY', STATE, 'repeated:verdict', 1)
  else
    -- gid and idx come from the entry itself: the queue, not the caller, says what this is.
    local f = {}
    for j = 1, #found[1][2], 2 do f[found[1][2][j]] = found[1][2][j + 1] end
    local gid, idx, payload = f.g or '', f.i or '', f.p or ''
    redis.call('XACK', queue, 'verifiers', entry)
    redis.call('XDEL', queue, entry)
    local key = group(gid)
    if redis.call('EXISTS', key) == 0 then
      if outcome == 'malformed' then
        bury(gid, idx, reason, verdict, payload)
        answer = 'dead'
      else
        answer = 'duplicate'
      end
    elseif outcome == 'error' and tonumber(f.t) + 1 < allowed then
      redis.call('XADD', queue, '*', 'g', gid, 'i', idx, 'v', f.v, 't', tonumber(f.t) + 1, 'w', f.w .. consumer .. ' ', 'p', payload)
      redis.call('HINCRBY', STATE, 'retried', 1)
      answer = 'retry'
    elseif outcome == 'error' or outcome == 'malformed' then
      bury(gid, idx, reason, verdict, payload)
      answer = 'dead'
    elseif redis.call('HSETNX', key, 'j' .. idx, verdict) == 0 then
      answer = 'duplicate'
      redis.call('HINCRBY', STATE, 'repeated:verdict', 1)
    else
      redis.call('HSET', key, 'c' .. idx, payload)
      redis.call('HINCRBY', key, 'judged', 1)
      local oldest = tonumber(redis.call('HGET', key, 'oldest') or f.v)
      redis.call('HSET', key, 'oldest', math.min(oldest, tonumber(f.v)))
      redis.call('HINCRBY', STATE, 'outcome:' .. outcome, 1)
      settle(gid)
      answer = 'done'
    end
  end
  replies[#replies + 1] = answer
end
return replies
