-- Shared by the scripts that keep the byte budget's books (put in front of them when they are loaded).
-- `reserved` is a hash: ID -> bytes, "" -> the sum of all.
local function reserve(reserved, id, bytes)
  local before = tonumber(redis.call('HGET', reserved, id) or 0)
  redis.call('HSET', reserved, id, bytes)
  redis.call('HINCRBY', reserved, '', bytes - before)
end

local function give_back(reserved, id)
  local bytes = tonumber(redis.call('HGET', reserved, id) or 0)
  redis.call('HDEL', reserved, id)
  if redis.call('HINCRBY', reserved, '', -bytes) <= 0 then
    redis.call('HDEL', reserved, '') -- the last one out leaves no key behind
  end
end

local function reserved_total(reserved)
  return tonumber(redis.call('HGET', reserved, '') or 0)
end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local ENDED = { succeeded = true, failed = true, canceled = true, expired = true }
