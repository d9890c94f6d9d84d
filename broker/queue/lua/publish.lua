-- A new version is on disk: move the pointer, and absorb the groups of the steps it contains. ARGV: epoch, version, step,
-- groups_per_step, admitted staleness ('' leaves it). Idempotent per version.
local refused = fence(ARGV[1])
if refused then return refused end
local version, step = tonumber(ARGV[2]), tonumber(ARGV[3])
if num('opened') == 1 and version <= num('version') then return version == num('version') and 1 or 0 end
redis.call('HSET', STATE, 'version', version, 'published_step', step, 'opened', 1,
  'absorbed', step * tonumber(ARGV[4]) + num('dropped'))
if (ARGV[5] or '') ~= '' then redis.call('HSET', STATE, 'admitted', ARGV[5]) end
return 1
