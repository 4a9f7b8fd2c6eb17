#!lua flags=allow-oom
-- Forget a batch that was not received as a whole; its members are canceled by the caller.
-- KEYS: 1 batch, 2 idempotency ("" key of the batch itself when there is none), 3 never (in a cluster)
-- ARGV: 1 id
-- Returns 1, or 0 if the batch is sealed (left alone).
if redis.call('HEXISTS', KEYS[1], 'total') == 1 then
  return 0
end
redis.call('DEL', KEYS[1])
if KEYS[2] ~= KEYS[1] and redis.call('GET', KEYS[2]) == ARGV[1] .. ' receiving' then
  redis.call('DEL', KEYS[2])
end
return 1
