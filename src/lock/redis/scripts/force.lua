-- Hands the lock over, whoever holds it. Answers 1, or 0 where nobody held it.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
hand_over(now_ms())
return 1
