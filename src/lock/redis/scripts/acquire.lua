-- Polls the lock. Returns {token, number of waiters} to the holder, and {0, ms until the holder's lock expires} to a waiter.
local id, now = ARGV[1], now_ms()
local holder = get_holder()
-- guard: fifo: a new waiter does not pass those in the queue
if not holder and run('LLEN', KEYS[3]) == 0 then
  redis.call('SET', KEYS[1], id, 'PX', ARGV[2])
  return {next_token(), 0}
end
if not holder then
  -- It expired, or another program deleted it: the first waiter is next, which may be the caller.
  join(id, now)
  hand_over(now, id)
  holder = redis.call('GET', KEYS[1])
end
-- guard: one_holder: a held lock is not granted again
if holder ~= id then
  -- guard: first_waiter_notifies: the first waiter notifies the holder that the lock is wanted
  if run('LLEN', KEYS[3]) == 0 then notify(holder, 'wanted ' .. newest_token()) end
  join(id, now)
  return {0, time_left(holder)}
end
-- The lock was handed over to the caller, or the answer to its first poll was lost. In both cases a new, higher token is valid.
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {next_token(), run('LLEN', KEYS[3])}
