#!lua flags=allow-oom
-- Give a claimed job back to its queue, at the end, for any worker to take.
-- KEYS: 1 job, 2 queue
-- ARGV: 1 id, 2 fence, 3 entry, 4 group
-- Returns 1, or 0 if the fence is lost or the job ended.
local state = redis.call('HMGET', KEYS[1], 'status', 'fence')
if state[1] ~= 'processing' or state[2] ~= ARGV[2] then
  return 0
end
redis.call('XACK', KEYS[2], ARGV[4], ARGV[3])
redis.call('XDEL', KEYS[2], ARGV[3])
local entry = redis.call('XADD', KEYS[2], '*', 'id', ARGV[1])
redis.call('HSET', KEYS[1], 'status', 'queued', 'entry', entry)
redis.call('HINCRBY', KEYS[1], 'fence', 1) -- who gave it back has no more say
redis.call('HDEL', KEYS[1], 'stage')
return 1
