-- Releases the lock if this lease holds it; otherwise removes the lease from the queue.
--
-- ARGV: 3 a second lease id of the same replica, to queue for in the same call (optional). 4 'soon': only if other replicas wait.
-- Returns {0, nil} if this lease did not hold the lock, {0, ''} if the lock is free now, {0, id} if the lease `id` holds it now, and
-- {token, ''} if no other waiter is alive and the second lease holds it now. If the answer is lost, the replica polls to find out.
-- guard: own_lease: a holder releases only its own lease
if get_holder() == ARGV[1] then
  local now, next_id = now_ms(), ARGV[3]
  -- guard: requeue_only_if_contended: an idle replica requeues only if others wait
  if ARGV[4] == 'soon' and run('LLEN', KEYS[3]) == 0 then next_id = nil end
  -- guard: requeue_behind_waiters: a releasing replica requeues behind all waiters
  if next_id then
    run('RPUSH', KEYS[3], next_id)
    set_waiter(next_id, now, now)
  end
  -- guard: hand_over: a release grants the lock to the next waiter
  local id = hand_over(now, next_id)
  if id ~= next_id then return {0, id} end
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return {next_token(), ''}
end
leave(ARGV[1])
return {0, false}
