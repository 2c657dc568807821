-- Gives the lock on if this lease holds it, and answers 1; else leaves the queue. A holder stands in no queue.
-- guard: own_lease
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('HDEL', KEYS[4], ARGV[1])
  -- guard: hand_over
  hand_over(now_ms())
  return 1
end
leave(ARGV[1])
return 0
