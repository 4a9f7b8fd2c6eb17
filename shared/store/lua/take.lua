#!lua
-- Take new entries of a queue and claim their jobs, in one step (and so with one write to disk).
-- KEYS: 1 queue, 2 never (in a cluster)
-- ARGV: 1 group, 2 consumer, 3 most entries, 4 stage (`decoding` | `inferring`), 5 prefix of job keys,
--       6 prefix of upload keys ("" where pictures are not wanted), 7 most bytes of a picture that comes along,
--       8 highest version of messages that is understood
-- Returns {ID of the newest entry there is, where no job was claimed, jobs of newer versions that were put back at the queue's end, {entry, job ID, fields as HGETALL, picture or false}, ...}
local taken = { '', 0 }
local read = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', ARGV[3], 'STREAMS', KEYS[1], '>')
for _, entry in ipairs(read and read[1][2] or {}) do
  local id
  for place = 1, #entry[2], 2 do -- a newer gateway may have put more into it
    if entry[2][place] == 'id' then
      id = entry[2][place + 1]
    end
  end
  -- Keys of jobs carry their queue's hash tag, so they lie in its slot.
  local fields = claim(ARGV[5] .. id, KEYS[1], entry[1], ARGV[1], ARGV[4], id, ARGV[8])
  if fields == 'newer' then
    taken[2] = taken[2] + 1
  elseif fields then
    local picture = false
    if ARGV[6] ~= '' and redis.call('STRLEN', ARGV[6] .. id) <= tonumber(ARGV[7]) then
      picture = redis.call('GET', ARGV[6] .. id)
    end
    table.insert(taken, { entry[1], id, fields, picture })
  end
end
if #taken == 2 then
  local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
  taken[1] = newest[1] and newest[1][1] or '0-0'
end
return taken
