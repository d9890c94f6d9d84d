-- Work a verifier will not finish: back into the queue at once, attempts unchanged. ARGV: verifier, consumer, entry….
local queue, count = stream(ARGV[1]), 0
for i = 3, #ARGV do
  local found = redis.call('XRANGE', queue, ARGV[i], ARGV[i])
  if found[1] then
    redis.call('XACK', queue, 'verifiers', ARGV[i])
    redis.call('XDEL', queue, ARGV[i])
    redis.call('XADD', queue, '*', unpack(found[1][2]))
    count = count + 1
  end
end
return count
