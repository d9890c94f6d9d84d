-- CLAIM: the oldest entry of a verify queue whose consumer gave no verdict and has not been heard of for `idle`
-- milliseconds. Each such delivery is an attempt, counted here, so that a consumer that was ended by what it judged
-- counts too; after `attempts` of them the entry is dead-lettered and the next one is looked at.
-- Returns nothing, or one entry: id, fields, the attempts before this one.
---@param verifier string
---@param consumer string
---@param attempts number  attempts after which a completion is dead-lettered
---@param idle number
local queue = stream(verifier)
for _, pending in ipairs(redis.call('XPENDING', queue, 'verifiers', 'IDLE', idle, '-', '+', 64)) do
  local entry, owner = pending[1], pending[2]
  local found = redis.call('XRANGE', queue, entry, entry)[1]
  if not found then
    redis.call('XACK', queue, 'verifiers', entry)
  else
    local f = {}
    for j = 1, #found[2], 2 do f[found[2][j]] = found[2][j + 1] end
    local deaths = (redis.call('HGET', DEATHS, verifier .. ':' .. entry) or '') .. owner .. ' gave no verdict\n'
    local used = (tonumber(f.t) or 0) + lines(deaths)
    if used >= attempts then
      redis.call('XACK', queue, 'verifiers', entry)
      redis.call('XDEL', queue, entry)
      redis.call('HDEL', DEATHS, verifier .. ':' .. entry)
      bury(verifier, f, 'no_verdict', '', (f.h or '') .. deaths)
    else
      -- XCLAIM first: it is allowed when Redis is at its memory limit, and so is what follows it.
      redis.call('XCLAIM', queue, 'verifiers', consumer, 0, entry)
      redis.call('HSET', DEATHS, verifier .. ':' .. entry, deaths)
      return {entry, found[2], used}
    end
  end
end
return {}
