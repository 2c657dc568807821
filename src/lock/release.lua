-- Gives the lock on if this lease holds it, and answers who has it now ('' for nobody); else leaves the queue, and answers nil. A
-- holder stands in no queue.
-- guard: own_lease
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('HDEL', KEYS[4], ARGV[1])
  -- guard: hand_over
  return hand_over(now_ms())
end
leave(ARGV[1])
return false
