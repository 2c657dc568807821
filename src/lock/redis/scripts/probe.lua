-- Returns 1 if Redis accepts the commands of the other scripts now. Without ARGV[3] it changes nothing: on a key that does not exist these
-- commands do nothing, but Redis refuses them as it refuses any write. With it, commands that need a value run as well, on the queue's key,
-- which is deleted again. While replicas wait, the queue is in use, and their polls find out the same.
redis.call('EXISTS', KEYS[1], KEYS[2], KEYS[4])
if redis.call('EXISTS', KEYS[3]) == 1 then return 1 end

local refusal
local function try(command, ...)
  local reply = redis.pcall(command, KEYS[3], ...)
  if not refusal and type(reply) == 'table' and reply.err then refusal = reply end
end

redis.call('DEL', KEYS[3])
try('SET', '0', 'XX', 'PX', KEEP_MS)
try('GET')
try('PTTL')
try('PEXPIRE', KEEP_MS)
try('LLEN')
try('LRANGE', 0, 0)
try('LPOS', '')
try('LREM', 0, '')
try('LPOP')
try('HGET', '')
try('HDEL', '')
if ARGV[3] then
  try('INCR')
  redis.call('DEL', KEYS[3])
  try('RPUSH', '')
  redis.call('DEL', KEYS[3])
  try('HSET', '', '')
  redis.call('DEL', KEYS[3])
end
return refusal or 1
