-- Names and functions that every script shares. KEYS[1] is the run's prefix "{sieve:<run>}": its hash tag puts all keys
-- of a run into one slot, so the keys derived from it here live on the same node. Keys and state machine:
-- broker/queue/connection.py. The arguments of a script are the locals that its `---@param` lines declare
-- (broker/queue/arguments.py generates them); no script reads ARGV itself.
-- Amounts are subtracted as `0 - x`: Lua prints `-x` of 0 as "-0", which HINCRBY refuses.
local P = KEYS[1] .. ':'
local STATE, OPEN, LIVE, HELD = P .. 'state', P .. 'open', P .. 'live', P .. 'held'
local RETURNED, EVALQ, LEASED = P .. 'returned', P .. 'evalq', P .. 'leased'
local SEEN, DEAD, DONE, DROPPED = P .. 'seen', P .. 'dead', P .. 'done', P .. 'dropped'
local AGAIN, CHECKPOINTS, DEATHS = P .. 'again', P .. 'checkpoints', P .. 'deaths'

local function num(field) return tonumber(redis.call('HGET', STATE, field) or '0') end
local function add(field, amount) if amount ~= 0 then redis.call('HINCRBY', STATE, field, amount) end end
local function group(group_id) return P .. 'group:' .. group_id end
local function stream(verifier) return P .. 'verify:' .. verifier end
local function ready(lane) return P .. 'ready:' .. lane end
local function lease_list(step) return P .. 'lease:' .. step end
local function now()
  local t = redis.call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1e6
end

-- A score that sorts by version, then by order of issue (below 2^32). Exact in a double up to version 2^21.
local function age(version, order) return tonumber(version) * 4294967296 + tonumber(order) end

-- Id and number of a train ticket (broker/queue/prompt_order.py).
local function train_id(order, train_prompts)
  return string.format('%d:%d', math.floor(order / train_prompts), order % train_prompts)
end
local function order_of(group_id, train_prompts)
  local cycle, place = string.match(group_id, '^(%d+):(%d+)$')
  return tonumber(cycle) * train_prompts + tonumber(place)
end

-- Steps of the committed checkpoints that are kept, oldest first.
local function checkpoint_steps()
  local steps = redis.call('HKEYS', CHECKPOINTS)
  for i, step in ipairs(steps) do steps[i] = tonumber(step) end
  table.sort(steps)
  return steps
end

-- A new group of `n` completions, none offered. `absorbed`: the absorbed count at its issue.
local function create(group_id, lane, order, n, version, absorbed)
  redis.call('HSET', group(group_id), 'lane', lane, 'order', string.format('%.0f', order), 'n', n, 'left', n,
    'version', version, 'absorbed', absorbed, 'attempt', 0, 'bytes', 0)
end

-- The absorbed count at the issue of the oldest open group, or `absorbed` when no group is open.
local function oldest_absorbed(absorbed)
  local first = redis.call('ZRANGE', OPEN, 0, 0, 'WITHSCORES')
  if first[2] then return math.min(tonumber(first[2]), absorbed) end
  return absorbed
end

-- Makes a held ticket available to every actor again.
local function reissue(group_id)
  redis.call('HDEL', HELD, group_id)
  local g = redis.call('HMGET', group(group_id), 'lane', 'order')
  if not g[1] then return end
  redis.call('ZADD', g[1] == 'eval' and EVALQ or RETURNED, g[2], group_id)
end

-- Ends a group without training: counts it, subtracts its bytes and frees its place in the admission window.
local function drop(group_id, reason)
  local g = redis.call('HMGET', group(group_id), 'lane', 'order', 'bytes')
  redis.call('DEL', group(group_id))
  redis.call('HDEL', HELD, group_id)
  redis.call('HINCRBY', STATE, 'bytes', 0 - tonumber(g[3] or '0'))
  redis.call('HINCRBY', STATE, 'dropped:' .. reason, 1)
  if g[1] == 'train' then
    redis.call('ZREM', OPEN, group_id)
    redis.call('ZREM', LIVE, group_id)
    redis.call('SETBIT', DROPPED, g[2], 1)
    redis.call('HINCRBY', STATE, 'dropped', 1)
    redis.call('HINCRBY', STATE, 'absorbed', 1)
  end
end

-- READY: `count` more completions of the group are judged or dead-lettered. When none is left, the group becomes ready,
-- or is dropped when every completion was dead-lettered.
local function settle(group_id, count)
  local key = group(group_id)
  if redis.call('HINCRBY', key, 'left', 0 - count) > 0 then return end
  local g = redis.call('HMGET', key, 'lane', 'judged', 'oldest', 'order', 'version')
  if g[1] == 'eval' then
    redis.call('SADD', ready('eval:' .. g[5]), group_id)
  elseif tonumber(g[2] or '0') == 0 then
    drop(group_id, 'empty')
  else
    redis.call('HSET', key, 'ready_at', string.format('%.3f', now()))
    redis.call('ZADD', ready('train'), age(g[3], g[4]), group_id)
  end
end

local function lines(text)
  local _, count = text:gsub('\n', '')
  return count
end

-- Dead-letters the completion of a queue entry with fields `f`: its group ends without it.
local function bury(verifier, f, reason, verdict, history)
  local group_id, idx, payload = f.g or '', f.i or '', f.p or ''
  redis.call('XADD', DEAD, '*', 'g', group_id, 'i', idx, 'verifier', verifier, 'reason', reason, 'verdict', verdict,
    'h', history, 'p', payload)
  redis.call('HINCRBY', STATE, 'dead', 1)
  if redis.call('EXISTS', group(group_id)) == 1 then
    redis.call('HINCRBY', group(group_id), 'bytes', 0 - #payload)
    redis.call('HINCRBY', STATE, 'bytes', 0 - #payload)
    redis.call('HINCRBY', group(group_id), 'short', 1)
    settle(group_id, 1)
  end
end

-- An error reply unless `epoch` is the newest: a learner whose run was taken over must change nothing any more.
local function fence(epoch)
  if num('epoch') ~= epoch then return redis.error_reply('FENCED ' .. tostring(num('epoch'))) end
end
