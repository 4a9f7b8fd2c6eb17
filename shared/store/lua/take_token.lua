#!lua
-- Take a token out of a tenant's bucket, which fills steadily.
-- KEYS: 1 bucket (hash: tokens, at_ms)
-- ARGV: 1 tokens per second, 2 most tokens
-- Returns 0, or in how many ms there will be one. An idle bucket is full, and full buckets are not kept.
local per_ms, most = tonumber(ARGV[1]) / 1000, tonumber(ARGV[2])
local bucket, now = redis.call('HMGET', KEYS[1], 'tokens', 'at_ms'), now_ms()
local tokens = most
if bucket[1] then
  tokens = math.min(most, tonumber(bucket[1]) + math.max(now - tonumber(bucket[2]), 0) * per_ms)
end
if tokens < 1 then
  return math.ceil((1 - tokens) / per_ms)
end
tokens = tokens - 1
redis.call('HSET', KEYS[1], 'tokens', string.format('%.6f', tokens), 'at_ms', string.format('%d', now))
redis.call('PEXPIRE', KEYS[1], math.ceil((most - tokens) / per_ms) + 1000)
return 0
