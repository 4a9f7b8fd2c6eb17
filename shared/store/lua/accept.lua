#!lua
-- Accept a job: idempotency, budget, job, enqueue, in one step. The upload lies in KEYS[2] already.
-- KEYS: 1 job, 2 upload, 3 live, 4 reserved, 5 queue, 6 idempotency ("" key of the job itself when there is none)
-- ARGV: 1 id, 2 bytes to reserve, 3 budget in bytes, 4 deadline from now in ms, 5 result TTL in ms, 6 request hash,
--       7 event channel, 8 event payload, 9 tenant ("" for none), 10 the tenant's share in bytes, 11 the tenant's event channel
--       or "", 12 most jobs that may be open (0: any number), 13.. field/value pairs of the job
-- Returns {"new"} | {"same", id} | {"mismatch"} | {"lost"} (the staged upload is gone) | {"full" | "share", bytes that would be
-- reserved} | {"busy", open jobs}
local id = ARGV[1]
local status = redis.call('HGET', KEYS[1], 'status')
if status then
  if ENDED[status] then -- the upload was sent once more: it is needed by a dead letter only, which alone keeps its options
    redis.call('PEXPIRE', KEYS[2], redis.call('HEXISTS', KEYS[1], 'options') == 1 and redis.call('PTTL', KEYS[1]) or 0)
  end
  return { 'same', id } -- our own retry: the reply was lost, the job was not
end
local keyed = KEYS[6] ~= KEYS[1]
local refusal, staged
if keyed then
  local known = redis.call('GET', KEYS[6])
  if known then
    local earlier, hash = string.match(known, '^(%S+) (%S*)$')
    refusal = hash == ARGV[6] and { 'same', earlier } or { 'mismatch' }
  end
end
if not refusal and redis.call('EXISTS', KEYS[2]) == 0 then
  refusal = { 'lost' }
end
if not refusal then
  refusal, staged = no_room(KEYS[4], id, tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[9], tonumber(ARGV[10]))
end
local most_open = tonumber(ARGV[12])
if not refusal and most_open > 0 then
  local open = redis.call('ZCARD', KEYS[3])
  if open >= most_open then
    refusal = { 'busy', open }
  end
end
if refusal then
  redis.call('DEL', KEYS[2])
  redis.call('ZREM', KEYS[3], id)
  give_back(KEYS[4], id)
  return refusal
end

local deadline = now_ms() + tonumber(ARGV[4])
local kept = tonumber(ARGV[4]) + tonumber(ARGV[5])
reserve(KEYS[4], id, tonumber(ARGV[2]), ARGV[9], staged)
redis.call('ZADD', KEYS[3], deadline, id)
if staged > 0 then
  redis.call('PEXPIRE', KEYS[2], kept) -- one that came along with the job has its TTL from birth
end
local entry = redis.call('XADD', KEYS[5], '*', 'id', id)
redis.call('HSET', KEYS[1], 'status', 'queued', 'fence', 0, 'attempts', 0, 'deadline_ms', deadline, 'entry', entry,
  'queue', KEYS[5], unpack(ARGV, 13))
redis.call('PEXPIRE', KEYS[1], kept)
if keyed then
  redis.call('SET', KEYS[6], id .. ' ' .. ARGV[6], 'PX', kept)
  redis.call('HSET', KEYS[1], 'idempotency', KEYS[6])
end
redis.call('PUBLISH', ARGV[7], ARGV[8])
if ARGV[11] ~= '' then
  redis.call('PUBLISH', ARGV[11], ARGV[8])
end
return { 'new' }
