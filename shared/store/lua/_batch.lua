-- Shared by the scripts that move a batch on (put in front of all scripts when they are loaded). `batch` is the batch's hash;
-- its `outbox`, if it has one, and its channel were named when it was opened.

-- What is to be delivered to a callback, written in the step that makes it true, so that nothing is lost between the two. The
-- outbox lives for three days after its last entry; whoever delivers takes entries out as soon as it has them safe.
local function outbox_add(outbox, kind, id, url, body)
  redis.call('XADD', outbox, '*', 'kind', kind, 'id', id, 'url', url, 'body', body)
  redis.call('PEXPIRE', outbox, 3 * 86400 * 1000)
end

local function batch_finish_if_done(batch, ttl_ms)
  local state = redis.call('HMGET', batch, 'total', 'ended', 'outbox', 'id', 'channel', 'callback_url')
  redis.call('PUBLISH', state[5], state[4])
  if state[1] and tonumber(state[1]) == tonumber(state[2]) then
    local time = redis.call('TIME')
    redis.call('HSET', batch, 'finished_ms', time[1] * 1000 + math.floor(time[2] / 1000))
    redis.call('PEXPIRE', batch, ttl_ms)
    if state[3] then
      outbox_add(state[3], 'batch', state[4], state[6], '')
    end
  end
end

local function batch_member_ended(batch, status, ttl_ms)
  if redis.call('EXISTS', batch) == 1 then -- a hash made anew here would have no end
    redis.call('HINCRBY', batch, 'ended', 1)
    redis.call('HINCRBY', batch, status, 1)
    batch_finish_if_done(batch, ttl_ms)
  end
end
