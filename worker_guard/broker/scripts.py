"""What a look does on the server in one step each. Keys are declared; nothing is decoded."""

from __future__ import annotations

#: The last item of a list, as its length and the digest of its end, where kombu writes a delivery
#: tag that no other message has. Empty if there is no such list.
_ITEM = """
local function item(key)
  local last = redis.pcall('LINDEX', key, -1)
  if type(last) == 'string' then
    return #last .. ' ' .. redis.sha1hex(string.sub(last, -1024))
  elseif type(last) == 'table' and not string.find(last.err, 'WRONGTYPE', 1, true) then
    error("'lindex': " .. last.err, 0)
  end
  return ''
end
"""

#: A command, with its name in the error if the server refuses it.
_CALL = """
local function call(command, ...)
  local answer = redis.pcall(command, ...)
  if type(answer) == 'table' and answer.err then
    error("'" .. string.lower(command) .. "': " .. answer.err, 0)
  end
  return answer
end
"""

#: The last items of the lists KEYS.
READ = (
    _ITEM
    + """
local found = {}
for at, key in ipairs(KEYS) do
  found[at] = item(key)
end
return found
"""
)

#: Deletes each of the lists KEYS whose last item is still the one in ARGV; returns how many.
DELETE = (
    _CALL
    + _ITEM
    + """
local deleted = 0
for at, key in ipairs(KEYS) do
  if item(key) == ARGV[at] then
    deleted = deleted + call('UNLINK', key)
  end
end
return deleted
"""
)

#: Puts the notes of this look (KEYS[2]) in the place of the earlier ones (KEYS[1]).
REPLACE = """
redis.call('UNLINK', KEYS[1])
if redis.call('EXISTS', KEYS[2]) == 1 then
  redis.call('RENAME', KEYS[2], KEYS[1])
end
"""

#: How many fields of the hash KEYS[1] are no members of the sorted set KEYS[2]. Of more than
#: ARGV[1] fields: how many more there are than members, so at least so many. It reads no values,
#: which are whole messages. kombu changes both keys in one transaction, so none is between the two.
WITHOUT_INDEX = (
    _CALL
    + """
local fields = call('HLEN', KEYS[1])
if fields > tonumber(ARGV[1]) then
  return math.max(0, fields - call('ZCARD', KEYS[2]))
end
local found = 0
for _, tag in ipairs(call('HKEYS', KEYS[1])) do
  if not call('ZSCORE', KEYS[2], tag) then
    found = found + 1
  end
end
return found
"""
)
