-- Claim one delivered queue entry: the fence goes up by one, which shuts out whoever had the job before.
-- Returns the job's fields as HGETALL does; false if the job ended or moved on (the entry is then removed); or 'newer' if its
-- messages are of a version above `version`: it then stands at the end of the queue, and nobody has counted this as a try.
local function claim(job, queue, entry, group, stage, id, version)
  local state = redis.call('HMGET', job, 'status', 'entry', 'v')
  if not state[1] or ENDED[state[1]] or state[2] ~= entry then
    redis.call('XACK', queue, group, entry)
    redis.call('XDEL', queue, entry)
    return false
  end
  if tonumber(state[3] or 1) > tonumber(version) then
    redis.call('XACK', queue, group, entry)
    redis.call('XDEL', queue, entry)
    redis.call('HSET', job, 'entry', redis.call('XADD', queue, '*', 'id', id))
    return 'newer'
  end
  redis.call('HINCRBY', job, 'fence', 1)
  -- A second claim of the same stage is a new attempt; going from one stage to the next is not.
  local claims = redis.call('HINCRBY', job, 'claims:' .. stage, 1)
  if claims > 1 or redis.call('HGET', job, 'attempts') == '0' then
    redis.call('HINCRBY', job, 'attempts', 1)
  end
  redis.call('HSET', job, 'status', 'processing', 'stage', stage, 'claimed_ms', now_ms())
  return redis.call('HGETALL', job)
end
