-- Takes the lock from its holder and hands it over. Returns 1, or 0 if there was no holder.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
hand_over(now_ms())
return 1
