-- What an actor makes of a version's canary. ARGV: version, actor, message. One report per version and actor: a later one takes
-- its place. Nothing is kept of a version whose canary is gone. Idempotent.
if redis.call('HEXISTS', P .. 'canaries', ARGV[1]) == 0 then return 0 end
redis.call('HSET', P .. 'canary-reports', ARGV[1] .. ':' .. ARGV[2], ARGV[3])
return 1
