-- Answers the holder's id, the ms until its time runs out, and the newest token, which is the holder's if that is one of ours; then
-- each waiter's id and the ms that it waits, in order.
local now = now_ms()
local holder = redis.call('GET', KEYS[1])
local token = tonumber(redis.call('GET', KEYS[2]) or 0)
local answer = {holder or '', holder and redis.call('PTTL', KEYS[1]) or 0, token}
for _, id in ipairs(redis.call('LRANGE', KEYS[3], 0, 999)) do
  local came, seen = waiter(id)
  if seen and now - seen <= ALIVE_MS then
    table.insert(answer, id)
    table.insert(answer, now - came)
  end
end
return answer
