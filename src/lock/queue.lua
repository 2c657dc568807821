-- What the scripts share; it stands before each of them.
-- KEYS: 1 the lock, 2 the token counter, 3 the queue, 4 when each waiter last looked. ARGV: 1 lease id, 2 time to live in ms.
-- The queue holds lease ids in order of arrival. All keys share the lock's hash tag; the channel's name is the queue's.

-- A waiter looks every 250 ms at least; one that has not for this long is dead.
local ALIVE_MS = 1000
-- A grant that its waiter does not collect in time goes on to the next.
local CLAIM_MS = 1000
-- Nothing of a queue that nobody waits in stays behind.
local KEEP_MS = 60000

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function join(id, now)
  if not redis.call('LPOS', KEYS[3], id) then redis.call('RPUSH', KEYS[3], id) end
  redis.call('HSET', KEYS[4], id, now)
  redis.call('PEXPIRE', KEYS[3], KEEP_MS)
  redis.call('PEXPIRE', KEYS[4], KEEP_MS)
end

local function leave(id)
  redis.call('LREM', KEYS[3], 0, id)
  redis.call('HDEL', KEYS[4], id)
end

-- Gives the lock to the longest waiter that is alive, and wakes it; frees it if there is none.
local function hand_over(now)
  while true do
    local id = redis.call('LPOP', KEYS[3])
    if not id then
      redis.call('DEL', KEYS[1])
      return
    end
    local seen = redis.call('HGET', KEYS[4], id)
    redis.call('HDEL', KEYS[4], id)
    if seen and now - tonumber(seen) <= ALIVE_MS then
      redis.call('SET', KEYS[1], id, 'PX', CLAIM_MS)
      -- Only a hint: the state is the truth, and a waiter that misses this finds itself the holder at its next look.
      if id ~= ARGV[1] then redis.call('PUBLISH', KEYS[3], id) end
      return
    end
  end
end

