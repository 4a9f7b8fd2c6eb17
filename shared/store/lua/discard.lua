#!lua flags=allow-oom
-- Drop an upload that was staged and will not be accepted, and give its reservation back.
-- KEYS: 1 upload, 2 live, 3 reserved, 4 job
-- ARGV: 1 id
-- Returns 1, or 0 if the ID belongs to an accepted job (left alone).
if redis.call('EXISTS', KEYS[4]) == 1 then
  return 0
end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
give_back(KEYS[3], ARGV[1])
return 1
