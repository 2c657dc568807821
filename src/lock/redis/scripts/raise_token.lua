-- Raises the token counter to ARGV[3] if it is lower. Compares as text, because Lua's numbers are exact only up to 2^53.
local function is_above(a, b)
  if #a ~= #b then return #a > #b end
  return a > b
end
if is_above(ARGV[3], newest_token()) then redis.call('SET', KEYS[2], ARGV[3], 'PX', KEEP_TOKEN_MS) end
return 1
