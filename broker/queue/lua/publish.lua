-- Moves the version pointer to a version whose files are complete, and absorbs the groups of the steps that it
-- contains. From here on the number means the files of this epoch with this identity, and nothing else. Idempotent.
-- Returns 1, or 0 when the number, or a higher one, is published already.
---@param epoch number
---@param version number
---@param step number  optimiser steps that the version contains; never fewer than the published version contains
---@param identity string  hash of its files
---@param groups_per_step number
---@param admitted number?  the staleness that admission aims at from now on; left as it is when absent
local refused = fence(epoch)
if refused then return refused end
local record = epoch .. ' ' .. step .. ' ' .. identity
if redis.call('HGET', P .. 'versions', version) == record and version == num('version') then return 1 end
if redis.call('HLEN', P .. 'versions') > 0 and version <= num('version') then return 0 end
if num('opened') == 1 and step < num('published_step') then
  return redis.error_reply('OLDER ' .. num('published_step'))
end
redis.call('HSET', P .. 'versions', version, record)
redis.call('HSET', STATE, 'version', version, 'published_step', step, 'opened', 1,
  'absorbed', step * groups_per_step + num('dropped'))
if admitted then redis.call('HSET', STATE, 'admitted', admitted) end
return 1
