-- Functions that the scripts share. Each script is sent with this text before it.
--
-- KEYS: 1 the lock, 2 the token counter, 3 the queue, 4 when each waiter came and last polled. They share one hash tag, so that a
-- cluster accepts them in one script. ARGV: 1 lease id, 2 time to live in ms. The queue holds lease ids in order of arrival.

-- A waiter polls at least every 250 ms. One that has not polled for this long is dead.
local ALIVE_MS = 1000
-- A lock that is handed over lasts this long at first, or its time to live if that is shorter. If the waiter neither polls nor renews
-- it by then, it goes to the next waiter.
local CLAIM_MS = 1000
-- Time to live of a queue that nobody uses.
local KEEP_MS = 60000
-- Time to live of an unused token counter. The journal holds the highest token, and raises a lost counter.
local KEEP_TOKEN_MS = 86400000
-- One hand-over in this many extends both, because extending them costs three commands.
local KEEP_EVERY = 16

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- A counter above this that never expires was not written by a replica. Below it, tokens never reach the end of Redis's numbers.
local TOKEN_MAX = 2 ^ 62

-- Whether Redis refuses a command because of what the key holds.
local function is_garbage(reply)
  if type(reply) ~= 'table' or not reply.err then return false end
  return string.find(reply.err, 'WRONGTYPE') or string.find(reply.err, 'not an integer') or string.find(reply.err, 'overflow')
end

-- Runs a command on the token counter, the queue or the waiters. Another program may have stored something else there: it is deleted,
-- which costs no more than the loss of the key.
local function run(command, key, ...)
  local reply = redis.pcall(command, key, ...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  if is_garbage(reply) then redis.call('DEL', key) end
  return redis.call(command, key, ...)
end

-- Returns the lock's value, or nil if the lock is free, and whether a key of another type than a string is in its place.
local function get_holder()
  local holder = redis.pcall('GET', KEYS[1])
  if type(holder) ~= 'table' or not holder.err then return holder, false end
  if is_garbage(holder) then return '', true end
  return redis.call('GET', KEYS[1])
end

-- Increments the counter. Returns its value as a number, and exactly: as text where Lua's numbers are not exact.
local function increment()
  local count = run('INCR', KEYS[2])
  if count < 1 or count > TOKEN_MAX and redis.call('PTTL', KEYS[2]) < 0 then
    redis.call('DEL', KEYS[2])
    count = redis.call('INCR', KEYS[2])
  end
  if count < 2 ^ 53 then return count, count end
  return count, redis.call('GET', KEYS[2])
end

-- Returns the counter as text, '0' if it holds no token.
local function newest_token()
  local text = run('GET', KEYS[2])
  if not text or not string.find(text, '^[1-9]%d*$') or #text > 19 then return '0' end
  return text
end

local function next_token()
  local _, token = increment()
  -- guard: counter_expires: the token counter expires when unused
  redis.call('PEXPIRE', KEYS[2], KEEP_TOKEN_MS)
  return token
end

local function extend_queue()
  redis.call('PEXPIRE', KEYS[3], KEEP_MS)
  redis.call('PEXPIRE', KEYS[4], KEEP_MS)
end

-- For hand-overs: under load they follow each other without a poll, which would extend the queue and the counter.
local function next_token_of_hand_over()
  local count, token = increment()
  -- guard: busy_queue_stays: the counter and queue do not expire while in use
  if count >= 2 ^ 53 or count % KEEP_EVERY == 1 then
    redis.call('PEXPIRE', KEYS[2], KEEP_TOKEN_MS)
    extend_queue()
  end
  return token
end

-- Returns when a waiter came and when it last polled, or nil if it is not in the queue.
local function waiter(id)
  local times = run('HGET', KEYS[4], id)
  if not times then return nil end
  local came, polled = string.match(times, '(%d+) (%d+)')
  return tonumber(came), tonumber(polled)
end

local function set_waiter(id, came, polled)
  run('HSET', KEYS[4], id, string.format('%.0f %.0f', came, polled))
end

-- Returns the time to live that a lease id contains, in ms, or nil for the lock of another program.
local function ttl_of(id)
  return tonumber(string.match(id, '/' .. string.rep('%x', 32) .. '/(%d+)/%d+$'))
end

-- Returns the holder's remaining time, in ms. If it exceeds the longest time that a lease can get, Redis's clock was set back after
-- the grant. The time is then cut to that, so that the lock of a dead holder still expires.
local function time_left(holder)
  local left = redis.call('PTTL', KEYS[1])
  local ttl = ttl_of(holder)
  local most = ttl and math.max(ttl, CLAIM_MS)
  -- guard: clock_went_back: a jump of Redis's clock does not extend a lease
  if most and left > most then
    redis.call('PEXPIRE', KEYS[1], most)
    return most
  end
  return left
end

-- Records a poll. The waiter joins the end of the queue, or keeps its place.
local function join(id, now)
  local came = waiter(id)
  if not (came and run('LPOS', KEYS[3], id)) then run('RPUSH', KEYS[3], id) end
  set_waiter(id, came or now, now)
  extend_queue()
end

local function leave(id)
  run('LREM', KEYS[3], 0, id)
  run('HDEL', KEYS[4], id)
end

-- Publishes to the replica of a lease. Its channel is the queue's key and the lease id without its number; a foreign lock has none.
-- The message is a hint, and a poll replaces a lost one, so a Redis user that may not publish is no error.
local function notify(id, message)
  local replica = string.match(id, '^.*/')
  if replica then redis.pcall('PUBLISH', KEYS[3] .. ':' .. replica, message .. ' ' .. id) end
end

-- Gives the lock to the first live waiter and returns its id, or frees the lock and returns ''. Notifies the waiter with its token and
-- the number of waiters behind it, so that it can start without a poll; but not `own_id`, the caller's.
local function hand_over(now, own_id)
  while true do
    local id = run('LPOP', KEYS[3])
    if not id then
      redis.call('DEL', KEYS[1], KEYS[4])
      return ''
    end
    local _, polled = waiter(id)
    run('HDEL', KEYS[4], id)
    -- guard: skip_dead_waiters: a waiter that stopped polling is skipped
    if polled and math.abs(now - polled) <= ALIVE_MS then
      local lasts = math.min(CLAIM_MS, ttl_of(id) or CLAIM_MS)
      -- guard: claim_in_time: a grant that is not claimed expires soon
      redis.call('SET', KEYS[1], id, 'PX', lasts)
      -- guard: notify: the next holder is notified of its grant
      if id ~= own_id then notify(id, string.format('granted %s %d', next_token_of_hand_over(), run('LLEN', KEYS[3]))) end
      return id
    end
  end
end
