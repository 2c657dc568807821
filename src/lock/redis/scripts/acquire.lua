-- One look at the lock. Answers {token, how many wait} to the holder, or {0, ms until the holder's time runs out} to a waiter.
local id, now = ARGV[1], now_ms()
local holder = redis.call('GET', KEYS[1])
-- guard: order_of_arrival
if not holder and redis.call('LLEN', KEYS[3]) == 0 then
  redis.call('SET', KEYS[1], id, 'PX', ARGV[2])
  return {next_token(), 0}
end
if not holder then
  -- Expired, or freed by somebody who knows of no queue: the longest waiter is next, which may be the caller.
  join(id, now)
  hand_over(now, id)
  holder = redis.call('GET', KEYS[1])
end
-- guard: one_holder
if holder ~= id then
  -- guard: first_in_line_tells
  if redis.call('LLEN', KEYS[3]) == 0 then tell(holder, 'wanted ' .. (redis.call('GET', KEYS[2]) or 0)) end
  join(id, now)
  return {0, time_left(holder)}
end
-- Handed over, or the answer was lost: then a new token is as good, since tokens only grow.
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {next_token(), redis.call('LLEN', KEYS[3])}
