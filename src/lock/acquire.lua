-- KEYS: the lock, the token counter. ARGV: lease id, time to live in ms.
-- Answers {token, 0} to the new holder, or {0, ms until the holder's time runs out}.
if redis.call('GET', KEYS[1]) == ARGV[1] then
  -- An answer that was lost: the caller holds the lock already. A new token is as good, since tokens only grow.
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
elseif not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
  return {0, redis.call('PTTL', KEYS[1])}
end
return {redis.call('INCR', KEYS[2]), 0}
