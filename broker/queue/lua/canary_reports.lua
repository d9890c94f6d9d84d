-- All stored canary reports.
return redis.call('HVALS', P .. 'canary-reports')
