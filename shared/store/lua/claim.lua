#!lua
-- Claim an entry that was taken over from another consumer.
-- KEYS: 1 job, 2 queue
-- ARGV: 1 entry, 2 group, 3 stage (`decoding` | `inferring`), 4 id, 5 highest version of messages that is understood
-- Returns the job's fields as HGETALL does; nothing if the job ended or moved on (the entry is then removed); or "newer" (it is
-- then at the end of the queue).
return claim(KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5])
