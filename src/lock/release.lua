-- Gives the lock on if this lease holds it, and answers {0, who has it now} ('' for nobody); else leaves the queue, and answers
-- {0, nil}. A holder stands in no queue. With a third argument, a holder that nobody waits for has it again, under a new token:
-- {token, ''}. A repeat whose answer was lost gets another one.
-- guard: own_lease
if redis.call('GET', KEYS[1]) == ARGV[1] then
  -- guard: again_for_nobody
  if ARGV[3] and redis.call('LLEN', KEYS[3]) == 0 then
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
    return {next_token(), ''}
  end
  -- guard: hand_over
  return {0, hand_over(now_ms())}
end
leave(ARGV[1])
return {0, false}
