-- Issues the tickets of an evaluation, pinned to a version. Idempotent per version.
---@param epoch number
---@param version number
---@param prompts number  the first so many prompts of the eval lane
---@param n number  completions per prompt
local refused = fence(epoch)
if refused then return refused end
if redis.call('HSETNX', P .. 'evals', version, prompts) == 0 then return 0 end
for i = 0, prompts - 1 do
  local group_id, order = 'e' .. version .. ':' .. i, age(version, i)
  create(group_id, 'eval', order, n, version, 0)
  redis.call('ZADD', EVALQ, order, group_id)
end
return 1
