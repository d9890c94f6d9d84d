-- TICKET, returned: ARGV actor, group_id…. Only what this actor still holds goes back to the queue.
local count = 0
for i = 2, #ARGV do
  if redis.call('HGET', HELD, ARGV[i]) == ARGV[1] then
    reissue(ARGV[i])
    count = count + 1
  end
end
return count
