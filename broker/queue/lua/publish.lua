-- Moves the version pointer to a version whose files are complete, and absorbs the groups of the steps that it
-- contains. Idempotent per version. Returns 0 when a newer version is published already, else 1.
---@param epoch number
---@param version number
---@param step number  optimiser steps that the version contains
---@param groups_per_step number
---@param admitted number?  the staleness that admission aims at from now on; left as it is when absent
local refused = fence(epoch)
if refused then return refused end
if num('opened') == 1 and version <= num('version') then return version == num('version') and 1 or 0 end
redis.call('HSET', STATE, 'version', version, 'published_step', step, 'opened', 1,
  'absorbed', step * groups_per_step + num('dropped'))
if admitted then redis.call('HSET', STATE, 'admitted', admitted) end
return 1
