-- Extends the lock to its full time to live. Returns 1, or 0 if this lease does not hold it.
if get_holder() ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
