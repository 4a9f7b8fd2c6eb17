#!lua flags=allow-oom
-- Renew the lease of a claimed entry: its idle time in the pending list goes back to zero.
-- KEYS: 1 job, 2 queue
-- ARGV: 1 entry, 2 group, 3 consumer, 4 fence
-- Returns 1, or 0 if the fence is no longer ours.
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[4] then
  return 0
end
redis.call('XCLAIM', KEYS[2], ARGV[2], ARGV[3], 0, ARGV[1], 'JUSTID')
return 1
