-- KEYS: the lock. ARGV: lease id, time to live in ms. Answers 1 while the lease is this one's, else 0.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
