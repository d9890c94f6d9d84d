-- Base log-probs beside their completions. ARGV: group_id, idx, float32 bytes…. A group that is gone is left alone.
for i = 1, #ARGV, 3 do
  local key = group(ARGV[i])
  if redis.call('EXISTS', key) == 1 and redis.call('HSETNX', key, 'b' .. ARGV[i + 1], ARGV[i + 2]) == 1 then
    redis.call('HINCRBY', key, 'bytes', #ARGV[i + 2])
    redis.call('HINCRBY', STATE, 'bytes', #ARGV[i + 2])
  end
end
return 1
