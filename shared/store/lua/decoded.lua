#!lua flags=allow-oom
-- Hand a decoded job on: tensor in, upload out, enqueue for inference, ack. The tensor lies in KEYS[3] already,
-- or in shared memory (field `slot`).
-- KEYS: 1 job, 2 upload, 3 tensor, 4 queue it came from, 5 queue it goes to, 6 live
-- ARGV: 1 id, 2 fence, 3 entry, 4 group, 5 keep the upload (`1`), 6.. field/value pairs of the job
-- Returns 1, or 0 if the fence is lost or the job ended (the tensor is then removed, unless it is the job's).
local state = redis.call('HMGET', KEYS[1], 'status', 'fence', 'tensor', 'stage')
if state[1] == 'processing' and state[2] == ARGV[2] and state[4] == 'decoded' then
  return 1 -- our own retry: the reply was lost, the tensor was not
end
if state[1] ~= 'processing' or state[2] ~= ARGV[2] then
  -- A retry may come so late that inference has claimed the job: it is about to read this very tensor.
  if state[3] ~= KEYS[3] then
    redis.call('DEL', KEYS[3])
  end
  return 0
end
if ARGV[5] ~= '1' then
  redis.call('DEL', KEYS[2])
end
redis.call('XACK', KEYS[4], ARGV[4], ARGV[3])
redis.call('XDEL', KEYS[4], ARGV[3])
local entry = redis.call('XADD', KEYS[5], '*', 'id', ARGV[1])
redis.call('HSET', KEYS[1], 'stage', 'decoded', 'tensor', KEYS[3], 'entry', entry, 'queue', KEYS[5], unpack(ARGV, 6))
return 1
