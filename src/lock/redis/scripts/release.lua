-- Gives the lock on if this lease holds it, and answers {0, who has it now} ('' for nobody); else leaves the queue, and answers
-- {0, nil}. A holder stands in no queue. ARGV: 3 the lease that the holder's replica wants next, if any: it stands in the queue from
-- now on, behind all others, and has the lock at once if none of these is alive: {token, ''}. 4 'soon', if it has nothing to do yet:
-- then it stands there only if others do. A repeat whose answer was lost finds all of this with a look.
-- guard: own_lease
if redis.call('GET', KEYS[1]) == ARGV[1] then
  local now, next_id = now_ms(), ARGV[3]
  -- guard: soon_behind_others
  if ARGV[4] == 'soon' and redis.call('LLEN', KEYS[3]) == 0 then next_id = nil end
  -- guard: again_behind_others
  if next_id then
    redis.call('RPUSH', KEYS[3], next_id)
    note_waiter(next_id, now, now)
  end
  -- guard: hand_over
  local id = hand_over(now, next_id)
  if id ~= next_id then return {0, id} end
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return {next_token(), ''}
end
leave(ARGV[1])
return {0, false}
