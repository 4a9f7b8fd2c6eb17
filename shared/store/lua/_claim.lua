-- Claim one delivered queue entry: the fence goes up by one, which shuts out whoever had the job before.
-- Returns the job's fields as HGETALL does; false if the job ended or moved on (the entry is then removed); or 'newer' if its
-- messages are of a version above `version`: it then stands at the end of the queue, and nobody has counted this as a try.
local function claim(job, queue, entry, group, stage, id, version)
  local counted = 'claims:' .. stage
  local state = redis.call('HMGET', job, 'status', 'entry', 'v', 'fence', 'attempts', counted)
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
  local attempts, claims = tonumber(state[5]), tonumber(state[6] or 0) + 1
  -- A second claim of the same stage is a new attempt; going from one stage to the next is not.
  if claims > 1 or attempts == 0 then
    attempts = attempts + 1
  end
  redis.call('HSET', job, 'status', 'processing', 'stage', stage, 'claimed_ms', now_ms(), 'fence', state[4] + 1,
    'attempts', attempts, counted, claims)
  return redis.call('HGETALL', job)
end
