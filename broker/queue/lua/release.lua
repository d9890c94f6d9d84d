-- TICKET, given back unfinished: those that the actor still holds are reissued. Returns how many.
---@param actor string
---@param group_ids string[]
local count = 0
for _, group_id in ipairs(group_ids) do
  if redis.call('HGET', HELD, group_id) == actor then
    reissue(group_id)
    count = count + 1
  end
end
return count
