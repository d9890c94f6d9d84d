-- RETRY: puts a dead letter back into its verifier's queue, with all its attempts before it. Only while the group can
-- still take it: being judged, or a train group that is ready and not leased (it is taken back from there). A second
-- call finds no letter. Returns retried, gone (no such letter), or closed (its group has moved on or ended).
---@param entry string  id of the dead letter
---@param oldest number  oldest version that sampled any of the completion's tokens
local found = redis.call('XRANGE', DEAD, entry, entry)
if not found[1] then return 'gone' end
local f = {}
for j = 1, #found[1][2], 2 do f[found[1][2][j]] = found[1][2][j + 1] end
local group_id, key = f.g or '', group(f.g or '')
local g = redis.call('HMGET', key, 'lane', 'left', 'j' .. (f.i or ''))
if not g[1] or g[3] or num('finished') == 1 then return 'closed' end
if tonumber(g[2]) <= 0 then
  -- An evaluation is read group by group as it gets ready: what may have been read is not opened again.
  if g[1] ~= 'train' or redis.call('ZREM', ready('train'), group_id) == 0 then return 'closed' end
end
redis.call('XDEL', DEAD, entry)
redis.call('HINCRBY', STATE, 'dead', -1)
redis.call('HINCRBY', key, 'short', -1)
redis.call('HINCRBY', key, 'left', 1)
redis.call('HINCRBY', key, 'bytes', #f.p)
redis.call('HINCRBY', STATE, 'bytes', #f.p)
redis.call('XADD', stream(f.verifier), '*', 'g', group_id, 'i', f.i, 'v', oldest, 't', 0, 'w', '', 'p', f.p)
return 'retried'
