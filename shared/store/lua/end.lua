#!lua flags=allow-oom
-- End a job, once: result and TTL, pictures out, ack and delete, publish last.
-- KEYS: 1 job, 2 upload, 3 live, 4 reserved, 5 results stream
-- ARGV: 1 id, 2 fence ("" for cancel and expiry, which need none), 3 status, 4 result (MessagePack), 5 public payload,
--       6 result TTL in ms, 7 group, 8 stream length, 9 keep the upload (`1`), 10 wake channel ("" for none), 11.. channels
-- Returns 1, or 0 if the job had ended or the fence is lost: the caller's result is then dropped.
local job = redis.call('HMGET', KEYS[1], 'status', 'fence', 'entry', 'queue', 'tensor', 'idempotency')
if not job[1] or ENDED[job[1]] or (ARGV[2] ~= '' and job[2] ~= ARGV[2]) then
  return 0
end
redis.call('HSET', KEYS[1], 'status', ARGV[3], 'result', ARGV[4])
redis.call('HDEL', KEYS[1], 'stage', 'tensor', 'entry', 'placement', 'options', 'traceparent', 'reply_to')
redis.call('PEXPIRE', KEYS[1], ARGV[6])
if job[6] then
  redis.call('PEXPIRE', job[6], ARGV[6]) -- a key that outlived its job would lead nowhere
end
if ARGV[9] == '1' then
  redis.call('PEXPIRE', KEYS[2], ARGV[6])
else
  redis.call('DEL', KEYS[2])
end
-- The tensor's, the queue's and the idempotency key carry this job's hash tag, so they lie in the slot of the declared ones.
if job[5] then
  redis.call('DEL', job[5])
end
if job[3] then
  redis.call('XACK', job[4], ARGV[7], job[3])
  redis.call('XDEL', job[4], job[3])
end
redis.call('ZREM', KEYS[3], ARGV[1])
give_back(KEYS[4], ARGV[1])
redis.call('XADD', KEYS[5], 'MAXLEN', '~', ARGV[8], '*', 'id', ARGV[1], 'job', ARGV[5])
if ARGV[10] ~= '' then
  redis.call('PUBLISH', ARGV[10], ARGV[4])
end
for i = 11, #ARGV do
  redis.call('PUBLISH', ARGV[i], ARGV[5])
end
return 1
