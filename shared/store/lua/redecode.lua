#!lua flags=allow-oom
-- Have a job's picture decoded again: its pixels were in shared memory that cannot be reached (any more).
-- KEYS: 1 job, 2 upload, 3 queue it came from, 4 queue it goes to
-- ARGV: 1 id, 2 fence, 3 entry, 4 group
-- Returns 1, 0 if the fence is lost or the job ended, or -1 if the upload is no longer kept (nothing is changed).
local state = redis.call('HMGET', KEYS[1], 'status', 'fence')
if state[1] ~= 'processing' or state[2] ~= ARGV[2] then
  return 0
end
if redis.call('EXISTS', KEYS[2]) == 0 then
  return -1
end
redis.call('XACK', KEYS[3], ARGV[4], ARGV[3])
redis.call('XDEL', KEYS[3], ARGV[3])
local entry = redis.call('XADD', KEYS[4], '*', 'id', ARGV[1])
redis.call('HSET', KEYS[1], 'status', 'queued', 'entry', entry, 'queue', KEYS[4])
redis.call('HINCRBY', KEYS[1], 'fence', 1) -- who could not read it has no more say
redis.call('HDEL', KEYS[1], 'stage', 'tensor', 'slot', 'image', 'placement', 'decoded_ms')
return 1
