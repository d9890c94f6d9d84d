-- Stores base log-probs beside their completions, once each. A group that no longer exists is left alone.
---@param scores {group_id: string, idx: number, data: string}[]  data: float32 little-endian, one per token
for _, score in ipairs(scores) do
  local key = group(score.group_id)
  if redis.call('EXISTS', key) == 1 and redis.call('HSETNX', key, 'b' .. score.idx, score.data) == 1 then
    redis.call('HINCRBY', key, 'bytes', #score.data)
    redis.call('HINCRBY', STATE, 'bytes', #score.data)
  end
end
return 1
