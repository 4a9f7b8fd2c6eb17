#!lua flags=allow-oom
-- All pictures of a batch have come: from now on it can finish, and its idempotency key leads to it.
-- KEYS: 1 batch, 2 idempotency ("" key of the batch itself when there is none), 3 never (in a cluster)
-- ARGV: 1 id, 2 number of pictures, 3 TTL until it must have finished in ms, 4 TTL once finished in ms, 5 request hash
-- Returns 1, or 0 if the batch is gone.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
if redis.call('HSETNX', KEYS[1], 'total', ARGV[2]) == 0 then
  return 1 -- our own retry
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
if KEYS[2] ~= KEYS[1] then
  redis.call('SET', KEYS[2], ARGV[1] .. ' ' .. ARGV[5], 'PX', ARGV[3])
end
batch_finish_if_done(KEYS[1], ARGV[4])
return 1
