-- Returns the holder's lease id ('' if the lock is free), the ms until it expires, and the newest token, which is the holder's unless the
-- lock is foreign; then the lease id of each live waiter, in order, and the ms since it came.
local now = now_ms()
local holder = redis.call('GET', KEYS[1])
local token = tonumber(redis.call('GET', KEYS[2]) or 0)
local answer = {holder or '', holder and redis.call('PTTL', KEYS[1]) or 0, token}
for _, id in ipairs(redis.call('LRANGE', KEYS[3], 0, 999)) do
  local came, polled = waiter(id)
  if polled and now - polled <= ALIVE_MS then
    table.insert(answer, id)
    table.insert(answer, now - came)
  end
end
return answer
