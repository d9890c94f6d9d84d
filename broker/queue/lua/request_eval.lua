-- Held-out tickets pinned to a version. ARGV: epoch, version, prompts, n. Idempotent per version.
local refused = fence(ARGV[1])
if refused then return refused end
if redis.call('HSETNX', P .. 'evals', ARGV[2], ARGV[3]) == 0 then return 0 end
for i = 0, tonumber(ARGV[3]) - 1 do
  local group_id = 'e' .. ARGV[2] .. ':' .. i
  local order = tonumber(ARGV[2]) * 4294967296 + i
  redis.call('HSET', group(group_id), 'lane', 'eval', 'order', string.format('%.0f', order), 'n', ARGV[4], 'left', ARGV[4],
    'version', ARGV[2], 'absorbed', 0, 'attempt', 0, 'bytes', 0)
  redis.call('ZADD', EVALQ, order, group_id)
end
return 1
