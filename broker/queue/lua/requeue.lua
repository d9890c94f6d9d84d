-- Puts work that a verifier will not finish back into the queue, its attempts unchanged. Returns how many entries.
---@param verifier string
---@param entries string[]
local queue, count = stream(verifier), 0
for _, entry in ipairs(entries) do
  local found = redis.call('XRANGE', queue, entry, entry)
  if found[1] then
    redis.call('XACK', queue, 'verifiers', entry)
    redis.call('XDEL', queue, entry)
    local deaths, fields = redis.call('HGET', DEATHS, verifier .. ':' .. entry), found[1][2]
    if deaths then -- deliveries without a verdict stay counted
      redis.call('HDEL', DEATHS, verifier .. ':' .. entry)
      local f = {}
      for j = 1, #fields, 2 do f[fields[j]] = fields[j + 1] end
      fields = {'g', f.g, 'i', f.i, 'v', f.v, 't', (tonumber(f.t) or 0) + lines(deaths), 'w', f.w or '',
        'h', (f.h or '') .. deaths, 'p', f.p}
    end
    redis.call('XADD', queue, '*', unpack(fields))
    count = count + 1
  end
end
return count
