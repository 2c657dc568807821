-- Returns the holder's lease id (nil if the lock is free, '' if it is no string), the type of its key, the ms until it expires, and the
-- newest token, which is the holder's unless the lock is foreign; then the lease id of each live waiter, in order, and the ms since it came.
local now = now_ms()
local holder, is_other_type = get_holder()
local kind = 'string'
if is_other_type then
  -- A Redis user that may not ask for the type still sees the lock.
  local answer = redis.pcall('TYPE', KEYS[1])
  kind = answer.ok or 'unknown'
end
local answer = {holder or false, kind, holder and redis.call('PTTL', KEYS[1]) or 0, newest_token()}
for _, id in ipairs(run('LRANGE', KEYS[3], 0, 999)) do
  local came, polled = waiter(id)
  if polled and now - polled <= ALIVE_MS then
    table.insert(answer, id)
    table.insert(answer, now - came)
  end
end
return answer
