#!lua flags=allow-oom
-- Give back the reservations of uploads that were kept with their results and have gone with them.
-- KEYS: 1 kept, 2 reserved
-- ARGV: 1 most at once
-- Returns how many.
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now_ms(), 'LIMIT', 0, tonumber(ARGV[1]))
for _, id in ipairs(due) do
  redis.call('ZREM', KEYS[1], id)
  give_back(KEYS[2], id)
end
return #due
