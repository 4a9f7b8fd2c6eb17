#!lua
-- Append a chunk of an upload that is not accepted yet, and reserve its bytes.
-- KEYS: 1 upload, 2 live, 3 reserved
-- ARGV: 1 id, 2 chunk, 3 budget in bytes, 4 staging TTL in ms
-- Returns 1, or 0 if the budget is spent (nothing appended).
local held = tonumber(redis.call('HGET', KEYS[3], ARGV[1]) or 0)
if reserved_total(KEYS[3]) + #ARGV[2] > tonumber(ARGV[3]) then
  return 0
end
redis.call('APPEND', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
reserve(KEYS[3], ARGV[1], held + #ARGV[2])
redis.call('ZADD', KEYS[2], now_ms() + tonumber(ARGV[4]), ARGV[1])
return 1
