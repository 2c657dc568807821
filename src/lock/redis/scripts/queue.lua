-- What the scripts share; it stands before each of them.
-- KEYS: 1 the lock, 2 the token counter, 3 the queue, 4 when each waiter came and last looked. ARGV: 1 lease id, 2 time to live
-- in ms. The queue holds lease ids in order of arrival. All keys share the lock's hash tag.

-- A waiter looks every 250 ms at least; one that has not for this long is dead.
local ALIVE_MS = 1000
-- A grant that is handed over lasts this long at first, or its time to live if that is shorter; one that its waiter neither collects nor renews goes on to the next.
local CLAIM_MS = 1000
-- Nothing of a queue that nobody waits in stays behind.
local KEEP_MS = 60000
-- Nor of a counter that nobody counts with: the journal's mark is the truth, and raises it.
local KEEP_TOKEN_MS = 86400000
-- So many hand-overs renew both, which cost a call each.
local KEEP_EVERY = 16

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function next_token()
  local token = redis.call('INCR', KEYS[2])
  -- guard: counter_expires
  redis.call('PEXPIRE', KEYS[2], KEEP_TOKEN_MS)
  return token
end

-- The queue is kept by each look, and the counter by each grant to who looks.
local function keep_queue()
  redis.call('PEXPIRE', KEYS[3], KEEP_MS)
  redis.call('PEXPIRE', KEYS[4], KEEP_MS)
end

-- Where one hand-over follows the other and nobody looks, a few of them keep both.
local function next_token_handed_over()
  local token = redis.call('INCR', KEYS[2])
  -- guard: busy_queue_stays
  if token % KEEP_EVERY == 1 then
    redis.call('PEXPIRE', KEYS[2], KEEP_TOKEN_MS)
    keep_queue()
  end
  return token
end

-- When a waiter came, and when it last looked; nil for one that is not known.
local function waiter(id)
  local known = redis.call('HGET', KEYS[4], id)
  if not known then return nil end
  local came, seen = string.match(known, '(%d+) (%d+)')
  return tonumber(came), tonumber(seen)
end

-- The time to live that a lease of ours asks for, in ms; nil for a foreign client's.
local function ttl_of(id)
  return tonumber(string.match(id, '/' .. string.rep('%x', 32) .. '/(%d+)/%d+$'))
end

-- How long the holder's time lasts, in ms. More than a lease of ours ever gets means that Redis's clock went back since it was
-- granted: its time begins now, or one that nobody releases would bind everybody for as long as the clock was wrong.
local function time_left(holder)
  local left = redis.call('PTTL', KEYS[1])
  local given = ttl_of(holder)
  local most = given and math.max(given, CLAIM_MS)
  -- guard: clock_went_back
  if most and left > most then
    redis.call('PEXPIRE', KEYS[1], most)
    return most
  end
  return left
end

local function note_waiter(id, came, now)
  redis.call('HSET', KEYS[4], id, string.format('%.0f %.0f', came, now))
end

-- For a look: one that stands in the queue keeps its place.
local function join(id, now)
  local came = waiter(id)
  if not (came and redis.call('LPOS', KEYS[3], id)) then redis.call('RPUSH', KEYS[3], id) end
  note_waiter(id, came or now, now)
  keep_queue()
end

local function leave(id)
  redis.call('LREM', KEYS[3], 0, id)
  redis.call('HDEL', KEYS[4], id)
end

-- A replica listens on one channel, named by the queue and by what all its lease ids begin with. A foreign holder has none.
-- Only a hint: the state is the truth, and who misses this finds it at its next look. So a user that may not publish is no failure.
local function tell(id, what)
  local replica = string.match(id, '^.*/')
  if replica then redis.pcall('PUBLISH', KEYS[3] .. ':' .. replica, what .. ' ' .. id) end
end

-- Gives the lock to the longest waiter that is alive, tells it unless it is `own`, the caller's, and answers its id; frees the lock if
-- there is none. With what it is told (its token, and how many wait behind it) it need not ask before it begins.
local function hand_over(now, own)
  while true do
    local id = redis.call('LPOP', KEYS[3])
    if not id then
      redis.call('DEL', KEYS[1], KEYS[4])
      return ''
    end
    local _, seen = waiter(id)
    redis.call('HDEL', KEYS[4], id)
    -- guard: skip_the_dead
    if seen and math.abs(now - seen) <= ALIVE_MS then
      local lasts = math.min(CLAIM_MS, ttl_of(id) or CLAIM_MS)
      -- guard: claim_in_time
      redis.call('SET', KEYS[1], id, 'PX', lasts)
      -- guard: wake
      if id ~= own then tell(id, string.format('granted %.0f %d', next_token_handed_over(), redis.call('LLEN', KEYS[3]))) end
      return id
    end
  end
end
