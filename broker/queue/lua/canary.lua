-- The canary of a version that is about to be published. ARGV: epoch, version, message, versions whose canaries and reports
-- stay … . Idempotent.
local refused = fence(ARGV[1])
if refused then return refused end
local kept = {[ARGV[2]] = true}
for i = 4, #ARGV do kept[ARGV[i]] = true end
for _, name in ipairs({'canaries', 'canary-reports'}) do
  for _, field in ipairs(redis.call('HKEYS', P .. name)) do
    if not kept[string.match(field, '^%d+')] then redis.call('HDEL', P .. name, field) end
  end
end
redis.call('HSET', P .. 'canaries', ARGV[2], ARGV[3])
return 1
