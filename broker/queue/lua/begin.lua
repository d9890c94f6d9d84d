-- Gives the run to a learner: fences every older one. What was leased stays leased, so that the steps after the commit
-- are done again with the same groups. The reply says which checkpoint to load: no other file counts.
-- Returns {epoch, committed step, checkpoint, version, highest version number used (-1: none), published step,
-- leased groups, opened (0 or 1)}.
---@param learner string
---@param lease_seconds number
---@param newest_epoch number  the highest epoch in the names of the run's files, which no epoch may have again
local other = redis.call('HGET', STATE, 'learner')
if other and other ~= learner then
  local seen = tonumber(redis.call('ZSCORE', SEEN, other) or '0')
  if now() - seen < lease_seconds then return redis.error_reply('BUSY ' .. other) end
end
redis.call('ZADD', SEEN, now(), learner)
local epoch = math.max(num('epoch'), newest_epoch) + 1
redis.call('HSET', STATE, 'learner', learner, 'epoch', epoch)
-- A version that was sent to actors may have been sampled from, even if its files were never completed.
local used = math.max(num('version'), num('offered'))
if used == 0 and redis.call('HLEN', P .. 'versions') == 0 then used = -1 end
return {epoch, num('committed_step'), redis.call('HGET', STATE, 'checkpoint') or '', num('version'), used,
  num('published_step'), redis.call('HLEN', LEASED), num('opened')}
