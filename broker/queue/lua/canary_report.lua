-- Stores an actor's scores of a version's canary, in place of its earlier ones. Without the canary nothing is stored.
-- Idempotent.
---@param version number
---@param actor string
---@param message string  the packed report
if redis.call('HEXISTS', P .. 'canaries', version) == 0 then return 0 end
redis.call('HSET', P .. 'canary-reports', version .. ':' .. actor, message)
return 1
