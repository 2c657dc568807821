-- KEYS: 2 the token counter. ARGV: 1 lease id, 2 time to live in ms, 3 the mark. Sees to it that the next token is above the mark.
-- As text, since a number of Lua's is not exact beyond 2^53.
local function above(a, b)
  if #a ~= #b then return #a > #b end
  return a > b
end
local token = redis.call('GET', KEYS[2])
if not token or above(ARGV[3], token) then redis.call('SET', KEYS[2], ARGV[3], 'PX', KEEP_TOKEN_MS) end
return 1
