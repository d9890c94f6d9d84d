-- Every report there is.
return redis.call('HVALS', P .. 'canary-reports')
