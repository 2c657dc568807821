-- KEYS: the lock. ARGV: lease id. Frees the lock only if this lease holds it.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
