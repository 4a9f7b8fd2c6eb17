#!lua
-- Claim a delivered queue entry: the fence goes up by one, which shuts out whoever had the job before.
-- KEYS: 1 job, 2 queue
-- ARGV: 1 entry, 2 group, 3 stage (`decoding` | `inferring`)
-- Returns the job's fields as HGETALL does, or nothing if the job ended or moved on (the entry is then removed).
local state = redis.call('HMGET', KEYS[1], 'status', 'entry')
if not state[1] or ENDED[state[1]] or state[2] ~= ARGV[1] then
  redis.call('XACK', KEYS[2], ARGV[2], ARGV[1])
  redis.call('XDEL', KEYS[2], ARGV[1])
  return false
end
redis.call('HINCRBY', KEYS[1], 'fence', 1)
-- A second claim of the same stage is a new attempt; going from one stage to the next is not.
local claims = redis.call('HINCRBY', KEYS[1], 'claims:' .. ARGV[3], 1)
if claims > 1 or redis.call('HGET', KEYS[1], 'attempts') == '0' then
  redis.call('HINCRBY', KEYS[1], 'attempts', 1)
end
redis.call('HSET', KEYS[1], 'status', 'processing', 'stage', ARGV[3], 'claimed_ms', now_ms())
return redis.call('HGETALL', KEYS[1])
