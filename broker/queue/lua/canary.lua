-- Stores the canary of a version that is about to be published, and deletes canaries and reports of versions that are
-- not kept. Idempotent.
---@param epoch number
---@param version number
---@param message string  the packed canary
---@param kept number[]  versions whose canaries and reports stay, besides `version`
local refused = fence(epoch)
if refused then return refused end
local stays = {[version] = true}
for _, other in ipairs(kept) do stays[other] = true end
for _, name in ipairs({'canaries', 'canary-reports'}) do
  for _, field in ipairs(redis.call('HKEYS', P .. name)) do
    if not stays[tonumber(string.match(field, '^%d+'))] then redis.call('HDEL', P .. name, field) end
  end
end
redis.call('HSET', P .. 'canaries', version, message)
return 1
