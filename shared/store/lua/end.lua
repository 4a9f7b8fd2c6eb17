#!lua flags=allow-oom
-- End a job, once: result and TTL, pictures out, ack and delete, publish last.
-- KEYS: 1 job, 2 upload, 3 live, 4 reserved, 5 results stream, 6 dead letters, 7 kept, 8 bytes of the dead letters,
--       9 never (in a cluster)
-- ARGV: 1 id, 2 fence ("" for cancel and expiry, which need none), 3 status, 4 result (MessagePack), 5 public payload,
--       6 result TTL in ms, 7 group, 8 stream length, 9 keep the upload (`1`), 10 wake channel ("" for none),
--       11 TTL in ms of a dead letter ("" if this end is none), 12 most dead letters, 13 most bytes of theirs, 14.. channels
-- Returns 1, or the pointer to the upload's file if it is removed, or 0 if the job had ended or the fence is lost: the caller's
-- result is then dropped.
local job = redis.call('HMGET', KEYS[1], 'status', 'fence', 'entry', 'queue', 'tensor', 'idempotency',
  'batch', 'outbox', 'callback')
if not job[1] or ENDED[job[1]] or (ARGV[2] ~= '' and job[2] ~= ARGV[2]) then
  return 0
end

-- A dead letter keeps what a replay needs: the job's fields and its upload. The newest stay, as far as number and bytes allow.
-- The sum of their bytes is counted up as they come, and counted anew where it is too much: it is never less than they take. Then
-- an eighth is made free at once, so that looking at all of them is rare.
local function bury()
  local ttl_ms, now = tonumber(ARGV[11]), now_ms()
  redis.call('ZREMRANGEBYSCORE', KEYS[6], '-inf', now - ttl_ms)
  redis.call('ZADD', KEYS[6], now, ARGV[1])
  redis.call('PEXPIRE', KEYS[6], ttl_ms)
  redis.call('PEXPIRE', KEYS[1], ttl_ms)
  redis.call('PEXPIRE', KEYS[2], ttl_ms)
  -- Keys of other jobs, but of this slot, as all keys of a partition.
  local job_prefix, upload_prefix = string.sub(KEYS[1], 1, -#ARGV[1] - 1), string.sub(KEYS[2], 1, -#ARGV[1] - 1)
  local function forget(id)
    redis.call('DEL', upload_prefix .. id)
    redis.call('HDEL', job_prefix .. id, 'options')
  end
  local most, most_bytes = tonumber(ARGV[12]), tonumber(ARGV[13])
  local own = upload_bytes(KEYS[2])
  local total = redis.call('INCRBY', KEYS[8], own)
  local excess = redis.call('ZCARD', KEYS[6]) - most
  if excess > 0 then
    for _, id in ipairs(redis.call('ZRANGE', KEYS[6], 0, excess - 1)) do
      total = redis.call('DECRBY', KEYS[8], upload_bytes(upload_prefix .. id))
      forget(id)
    end
    redis.call('ZREMRANGEBYRANK', KEYS[6], 0, excess - 1)
  end
  if total > most_bytes then
    local bytes, room = 0, own > most_bytes * 7 / 8 and most_bytes or most_bytes * 7 / 8
    for _, id in ipairs(redis.call('ZREVRANGE', KEYS[6], 0, -1)) do
      local its = upload_bytes(upload_prefix .. id)
      if bytes + its > room then
        forget(id)
      else
        bytes = bytes + its
      end
    end
    redis.call('SET', KEYS[8], bytes)
  end
  redis.call('PEXPIRE', KEYS[8], ttl_ms)
end

local is_dead, is_kept = ARGV[11] ~= '', ARGV[9] == '1'
-- What is over goes before the result comes: with that the hash is no longer a list, and each field is moved.
local over = { 'stage', 'tensor', 'slot', 'affine', 'entry', 'placement', 'traceparent', 'reply_to' }
if not is_dead and not is_kept then
  table.insert(over, 'options') -- nobody will ask for a replay or a drawing
end
redis.call('HDEL', KEYS[1], unpack(over))
redis.call('HSET', KEYS[1], 'status', ARGV[3], 'result', ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[6])
if job[6] then
  redis.call('PEXPIRE', job[6], ARGV[6]) -- a key that outlived its job would lead nowhere
end
-- The tensor's, the queue's and the idempotency key carry this job's hash tag, so they lie in the slot of the declared ones.
local gone = job[5] and { job[5] } or {}
local pointer
if is_dead then
  bury()
elseif is_kept then
  -- What was reserved stays so, for the picture and what is drawn of it, until both go.
  redis.call('PEXPIRE', KEYS[2], ARGV[6])
  redis.call('ZADD', KEYS[7], now_ms() + tonumber(ARGV[6]), ARGV[1])
else
  pointer = pointer_at(KEYS[2])
  table.insert(gone, KEYS[2])
end
if #gone > 0 then
  redis.call('DEL', unpack(gone))
end
if job[3] then
  redis.call('XACK', job[4], ARGV[7], job[3])
  redis.call('XDEL', job[4], job[3])
end
redis.call('ZREM', KEYS[3], ARGV[1])
if not is_kept then
  give_back(KEYS[4], ARGV[1])
end
redis.call('XADD', KEYS[5], 'MAXLEN', '~', ARGV[8], '*', 'id', ARGV[1], 'job', ARGV[5])
if job[8] then
  outbox_add(job[8], 'job', ARGV[1], job[9], ARGV[4])
end
if job[7] then
  batch_member_ended(job[7], ARGV[3], ARGV[6])
end
if ARGV[10] ~= '' then
  redis.call('PUBLISH', ARGV[10], ARGV[4])
end
for i = 14, #ARGV do
  redis.call('PUBLISH', ARGV[i], ARGV[5])
end
return pointer or 1
