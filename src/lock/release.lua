-- Leaves the queue, and gives the lock on if this lease holds it. Answers 1 if it did.
leave(ARGV[1])
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
hand_over(now_ms())
return 1
