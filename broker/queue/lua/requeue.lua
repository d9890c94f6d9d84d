-- Puts work that a verifier will not finish back into the queue, its attempts unchanged. Returns how many entries.
---@param verifier string
---@param entries string[]
local queue, count = stream(verifier), 0
for _, entry in ipairs(entries) do
  local found = redis.call('XRANGE', queue, entry, entry)
  if found[1] then
    redis.call('XACK', queue, 'verifiers', entry)
    redis.call('XDEL', queue, entry)
    redis.call('XADD', queue, '*', unpack(found[1][2]))
    count = count + 1
  end
end
return count
