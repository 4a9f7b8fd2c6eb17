#!lua
-- Open a batch whose pictures are about to come.
-- KEYS: 1 batch, 2 idempotency ("" key of the batch itself when there is none), 3 never (in a cluster)
-- ARGV: 1 id, 2 TTL while pictures come in ms, 3.. field/value pairs of the batch
-- Returns {"new"} | {"receiving", id} (a request with this key is being received) | {"sealed", id, request hash}
if KEYS[2] ~= KEYS[1] then
  local known = redis.call('GET', KEYS[2])
  if known then
    local earlier, hash = string.match(known, '^(%S+) (%S*)$')
    return { hash == 'receiving' and 'receiving' or 'sealed', earlier, hash }
  end
  redis.call('SET', KEYS[2], ARGV[1] .. ' receiving', 'PX', ARGV[2])
end
redis.call('HSET', KEYS[1], 'id', ARGV[1], 'ended', 0, unpack(ARGV, 3))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return { 'new' }
