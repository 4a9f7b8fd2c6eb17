-- Shared by the scripts that look at uploads: in the place of a picture there may be a pointer to its file, "\0file IDENTITY BYTES"
-- (shared/store/upload_files.py).
local POINTER_BYTES = 64

local function pointer_at(upload)
  if redis.call('STRLEN', upload) <= POINTER_BYTES then
    local value = redis.call('GET', upload)
    if value and string.sub(value, 1, 6) == '\0file ' then
      return value
    end
  end
end

local function upload_bytes(upload)
  local pointer = pointer_at(upload)
  return pointer and tonumber(string.match(pointer, ' (%d+)$')) or redis.call('STRLEN', upload)
end
