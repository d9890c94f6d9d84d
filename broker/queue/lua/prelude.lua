-- Shared by every script. KEYS[1] is the run's prefix "{sieve:<run>}"; its hash tag puts all keys of a run in one slot, so
-- the keys derived from it below live on the same node. State machine and key layout: broker/queue/client.py.
-- Amounts are subtracted as `0 - x`: Lua's `-x` of 0 prints as "-0", which HINCRBY refuses.
local P = KEYS[1] .. ':'
local STATE, OPEN, LIVE, HELD = P .. 'state', P .. 'open', P .. 'live', P .. 'held'
local RETURNED, EVALQ, LEASED = P .. 'returned', P .. 'evalq', P .. 'leased'
local SEEN, DEAD, DONE, DROPPED = P .. 'seen', P .. 'dead', P .. 'done', P .. 'dropped'

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

-- The absorbed count of the oldest open group, or of this moment when none is open.
local function oldest_absorbed(absorbed)
  local first = redis.call('ZRANGE', OPEN, 0, 0, 'WITHSCORES')
  if first[2] then return math.min(tonumber(first[2]), absorbed) end
  return absorbed
end

local function reissue(group_id)
  redis.call('HDEL', HELD, group_id)
  local g = redis.call('HMGET', group(group_id), 'lane', 'order')
  if not g[1] then return end
  redis.call('ZADD', g[1] == 'eval' and EVALQ or RETURNED, g[2], group_id)
end

-- A group that ends without training: counted, its bytes given back, its place in the window freed.
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

-- `count` completions of the group are settled (judged or dead-lettered); the last one makes it ready, or ends it empty.
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
    redis.call('ZADD', ready('train'), tonumber(g[3]) * 4294967296 + tonumber(g[4]), group_id)
  end
end

-- Only the newest learner may move the run; an older one that wakes up is refused.
local function fence(epoch)
  if num('epoch') ~= tonumber(epoch) then
    return redis.error_reply('FENCED ' .. tostring(num('epoch')))
  end
end
