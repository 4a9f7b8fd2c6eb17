#!lua
-- Append a chunk of an upload that is not accepted yet, and reserve its bytes; or those of a file, to which the chunk points.
-- KEYS: 1 upload, 2 live, 3 reserved
-- ARGV: 1 id, 2 chunk, 3 budget in bytes, 4 staging TTL in ms, 5 tenant ("" for none), 6 the tenant's share in bytes,
--       7 bytes of the file ("" where there is none)
-- Returns {"kept"}, or {"full" | "share", bytes that would be reserved} (nothing appended).
local bytes = tonumber(ARGV[7]) or held(KEYS[3], ARGV[1]) + #ARGV[2]
local refusal = no_room(KEYS[3], ARGV[1], bytes, tonumber(ARGV[3]), ARGV[5], tonumber(ARGV[6]))
if refusal then
  return refusal
end
if ARGV[7] ~= '' then
  redis.call('SET', KEYS[1], ARGV[2])
else
  redis.call('APPEND', KEYS[1], ARGV[2])
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
reserve(KEYS[3], ARGV[1], bytes, ARGV[5])
redis.call('ZADD', KEYS[2], now_ms() + tonumber(ARGV[4]), ARGV[1])
return { 'kept' }
