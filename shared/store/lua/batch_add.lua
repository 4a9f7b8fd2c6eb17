#!lua
-- Name the next member of a batch that is being received, or say why there is none.
-- KEYS: 1 batch, 2 idempotency ("" key of the batch itself when there is none), 3 never (in a cluster)
-- ARGV: 1 index, 2 member (job ID, or `!` and a problem in MessagePack), 3 TTL while pictures come in ms
-- Returns 1, or 0 if the batch is gone.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
if redis.call('HSETNX', KEYS[1], 'm:' .. ARGV[1], ARGV[2]) == 1 and string.sub(ARGV[2], 1, 1) == '!' then
  redis.call('HINCRBY', KEYS[1], 'ended', 1)
  redis.call('HINCRBY', KEYS[1], 'refused', 1)
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
if KEYS[2] ~= KEYS[1] then
  redis.call('PEXPIRE', KEYS[2], ARGV[3])
end
return 1
