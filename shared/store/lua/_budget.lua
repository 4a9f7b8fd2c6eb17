-- Shared by the scripts that keep the byte budget's books (put in front of them when they are loaded).
-- `reserved` is a hash: ID -> bytes, and its tenant where it has one; "@TENANT" -> that tenant's sum; "" -> the sum of all.
local function parsed(value)
  if not value then
    return 0, ''
  end
  local bytes, tenant = string.match(value, '^(%d+) ?(.*)$')
  return tonumber(bytes), tenant
end

local function held(reserved, id)
  return parsed(redis.call('HGET', reserved, id))
end

local function add(reserved, name, bytes)
  if redis.call('HINCRBY', reserved, name, bytes) <= 0 then
    redis.call('HDEL', reserved, name) -- the last one out leaves nothing behind
  end
end

-- `before` is what this ID has reserved, if `no_room` has told.
local function reserve(reserved, id, bytes, tenant, before)
  before = before or held(reserved, id)
  redis.call('HSET', reserved, id, tenant == '' and bytes or (string.format('%d', bytes) .. ' ' .. tenant))
  add(reserved, '', bytes - before)
  if tenant ~= '' then
    add(reserved, '@' .. tenant, bytes - before)
  end
end

local function give_back(reserved, id)
  local bytes, tenant = held(reserved, id)
  redis.call('HDEL', reserved, id)
  add(reserved, '', -bytes)
  if tenant ~= '' then
    add(reserved, '@' .. tenant, -bytes)
  end
end

-- Why `bytes` under this ID cannot be reserved, with the sum that would be: {"full" | "share", bytes}; or nil and what this
-- ID has reserved now.
local function no_room(reserved, id, bytes, budget, tenant, share)
  local books = redis.call('HMGET', reserved, id, '')
  local before = parsed(books[1])
  local total = tonumber(books[2] or 0) - before + bytes
  if total > budget then
    return { 'full', total }
  end
  if tenant ~= '' then
    total = tonumber(redis.call('HGET', reserved, '@' .. tenant) or 0) - before + bytes
    if total > share then
      return { 'share', total }
    end
  end
  return nil, before
end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local ENDED = { succeeded = true, failed = true, canceled = true, expired = true }
