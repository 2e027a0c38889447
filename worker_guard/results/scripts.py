"""The cleanup's scripts, in Lua, on the server.

The server runs nothing else during a script, so nobody writes between its check and its delete.
Both scripts have their keys declared, as Redis asks for. :data:`REAL_PAGE` judges the results of a
page by the two ends of their values, and decodes no JSON:

- The head is ``{"status": "…", "result": ``, as Celery begins each result.
- The tail holds ``, "date_done": …``. In a string its quotes would be escaped, so this is a real
  key; only its depth is open. From there the script walks whole members, aware of strings, to
  ``, "task_id": "…"}`` with the key's own id as the very last bytes. That proves the depth, and
  that no later member replaces the date or the state. (That the middle is JSON too is taken for
  granted: a value is written as a whole.)

A result of any other layout is unknown: the script returns it, and the client reads it whole
(:func:`worker_guard.results.selection.judge`). :data:`REAL_RECHECK` then changes it only if it is
still the same.

The scripts need Lua 5.1, as in Redis 6.2 and later and in Valkey.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha1

from worker_guard.results.selection import TAIL_BYTES, Policy

_COMMON = r"""
local count, now = tonumber(ARGV[1]), tonumber(ARGV[2])
local ttl_ms, ignore_ttl = ARGV[3], ARGV[4] == '1'
-- Numbers as text: Redis is slow to turn Lua's numbers into arguments.
local tail_bytes, tail_start = tonumber(ARGV[5]), '-' .. ARGV[5]
local keys, pcall_redis = KEYS, redis.pcall
local sub, find, match, byte = string.sub, string.find, string.match, string.byte
-- Replicates what the script did, not the script; the only mode of newer servers.
if redis.replicate_commands then redis.replicate_commands() end

-- Two numbers for each TTL of the backend: from, and to.
local backend_ttls_s = {}
for bound in string.gmatch(ARGV[6], '%S+') do
    backend_ttls_s[#backend_ttls_s + 1] = tonumber(bound)
end

local function refusal(command, err)
    return "'" .. string.lower(command) .. "': " .. err
end

-- A command's answer, or nil if the key has the wrong type for it.
local function read(command, key, from, to)
    local answer
    if to then answer = pcall_redis(command, key, from, to)
    elseif from then answer = pcall_redis(command, key, from)
    else answer = pcall_redis(command, key) end
    if type(answer) ~= 'table' then return answer end
    if not find(answer.err, 'WRONGTYPE', 1, true) then error(refusal(command, answer.err), 0) end
end

-- The TTL of a result that is old, or -1 if it does not count.
local function ttl_left(key)
    return ignore_ttl and -1 or read('PTTL', key)
end

-- Whether that is one that the backend does not give by itself.
local function is_its_own(pttl, done_at)
    local given_s = now - done_at + pttl / 1000
    for i = 1, #backend_ttls_s, 2 do
        if backend_ttls_s[i] <= given_s and given_s <= backend_ttls_s[i + 1] then return false end
    end
    return true
end

local unreadable, longer, old, forgotten = 0, 0, {}, {}
"""

_PAGE = r"""
local id_at, done_before = tonumber(ARGV[7]) + 1, tonumber(ARGV[8])
local naive_ahead_s = tonumber(ARGV[9])
local ready, ready_heads = {}, {}
for state in string.gmatch(ARGV[10], '%S+') do
    ready[state] = true
    ready_heads['{"status": "' .. state .. '", "result": '] = state
end
-- How long that is with a state of seven letters, as those of Celery are.
local HEAD_LENGTH = 32

-- Whether the key is a list of the broker's messages.
local function holds_messages(key)
    local item = read('LINDEX', key, '0')
    return item and sub(item, 1, 1) == '{'
        and find(item, '"delivery_tag"', 1, true) and find(item, '"body"', 1, true)
end

-- Seconds from 1970 to a day, or false. Cached, as the results of a page share few days.
local days = {}
local function midnight(text)
    local known = days[text]
    if known ~= nil then return known end
    local y, m, d = match(text, '^(%d%d%d%d)%-(%d%d)%-(%d%d)$')
    known = false
    if y then
        y, m, d = tonumber(y), tonumber(m), tonumber(d)
        local is_leap = y % 4 == 0 and (y % 100 ~= 0 or y % 400 == 0)
        local lengths = {31, is_leap and 29 or 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31}
        if y >= 1 and m >= 1 and m <= 12 and d >= 1 and d <= lengths[m] then
            -- Years begin in March here.
            local year = m <= 2 and y - 1 or y
            local floor = math.floor
            local leap_days = floor(year / 4) - floor(year / 100) + floor(year / 400)
            local month_days = floor((153 * ((m + 9) % 12) + 2) / 5)
            known = (365 * year + leap_days + month_days + d - 719469) * 86400
        end
    end
    days[text] = known
    return known
end

-- How many seconds a date with this behind its time is ahead of UTC, or false. Cached, too.
local aheads_s = {}
local function ahead_s(text)
    local known = aheads_s[text]
    if known ~= nil then return known end
    local sign, h, m = match(text, '^([+-])([0-2]%d):([0-5]%d)"$')
    if sign then
        known = h + 0 < 24 and (sign .. '1') * (h * 3600 + m * 60)
    else
        -- Without an offset it is taken as late as it can be meant.
        known = byte(text) == 34 and -naive_ahead_s
    end
    aheads_s[text] = known
    return known
end

-- The moment by which a date was over that is quoted here, and where it ends; nil if it is none.
local function moment(text, at)
    local h1, h2, _, m1, m2, _, s1, s2, dot = byte(text, at + 12, at + 20)
    local has_fraction = dot == 46
    local pattern = has_fraction and '^T[0-2]%d:[0-5]%d:[0-5]%d%.%d%d%d%d%d%d'
        or '^T[0-2]%d:[0-5]%d:[0-5]%d'
    if not find(text, pattern, at + 11) or h1 == 50 and h2 > 51 then return nil end
    local behind = has_fraction and at + 27 or at + 20
    local day_s = midnight(sub(text, at + 1, at + 10))
    local zone_s = ahead_s(sub(text, behind, behind + 6))
    if not day_s or not zone_s then return nil end
    -- A digit as a byte is 48 too large. Its second is over.
    return day_s + h1 * 36000 + h2 * 3600 + m1 * 600 + m2 * 60 + s1 * 10 + s2 - 1933007 - zone_s,
        behind + (byte(text, behind) == 34 and 1 or 7)
end

-- Where a string ends that begins here.
local function behind_string(text, at)
    at = at + 1
    while true do
        at = find(text, '["\\]', at)
        if not at then return nil end
        if byte(text, at) == 34 then return at + 1 end
        at = at + 2
    end
end

-- Where a value ends that begins here.
local function behind_value(text, at)
    local depth = 0
    repeat
        local c = byte(text, at)
        if c == 34 then
            at = behind_string(text, at)
        elseif c == 123 or c == 91 then
            depth, at = depth + 1, at + 1
        elseif c == 125 or c == 93 then
            depth, at = depth - 1, at + 1
        else
            at = match(text, '^[%w.+-]+()', at)
        end
        if not at or depth < 0 then return nil end
        if depth > 0 then at = find(text, '["{}%[%]]', at) end
    until depth == 0 or not at
    return at
end

-- Walk members from here to the ending. True, or where the object closes before, or nil.
local function walk(text, at, ending_at)
    while at ~= ending_at do
        if byte(text, at) == 125 then return at end
        local key, value_at = match(text, '^, "([^"\\]*)": ()', at)
        if not key or key == 'date_done' or key == 'status' or key == 'task_id' then return nil end
        at = behind_value(text, value_at)
        if not at then return nil end
    end
    return true
end

-- Whether the date of the whole result is in a tail, and its moment, or nil if that is none.
local function done_in(tail, ending_at)
    -- Nearly all results end with it and their id.
    local _, stop = find(tail, ', "date_done": "', ending_at > 49 and ending_at - 49 or 1, true)
    if stop then
        local done_at, behind = moment(tail, stop)
        if behind == ending_at then return true, done_at end
    end
    local at = 1
    while true do
        _, stop = find(tail, ', "date_done": ', at, true)
        if not stop then return false end
        local quoted, behind = match(tail, '^"[^"\\]*()"()', stop + 1)
        behind = behind or match(tail, '^null()', stop + 1)
        local met = behind and walk(tail, behind, ending_at)
        if met == true then
            local done_at, date_end = moment(tail, stop + 1)
            return true, quoted and date_end == behind and done_at or nil
        end
        if not met then return false end
        -- That was a deeper one. None on the right depth stands before its end.
        at = met
    end
end

-- What becomes of a result: 'old' with its moment, 'fresh', 'forgotten', 'unreadable', 'message',
-- or 'unknown'.
local function judge(key)
    local tail = pcall_redis('GETRANGE', key, tail_start, '-1')
    local length = #tail
    if length == 0 then
        -- It is empty, gone, or an error.
        if read('GETRANGE', key, '0', '0') then return 'unreadable' end
        return holds_messages(key) and 'message' or 'unreadable'
    end
    local is_cut, head = length == tail_bytes, tail
    if is_cut then head = read('GETRANGE', key, '0', '63') end
    local status = ready_heads[sub(head, 1, HEAD_LENGTH)]
    if not status then
        if byte(head) ~= 123 then return 'unreadable' end
        status = match(head, '^{"status": "([^"\\]*)", "result": ')
        if not status then return 'unknown' end
    end
    local ending = ', "task_id": "' .. sub(key, id_at) .. '"}'
    if sub(tail, -#ending) ~= ending then return 'unknown' end
    local found, done_at = done_in(tail, length - #ending + 1)
    if not found and is_cut then
        tail = read('GETRANGE', key, '-4096', '-1')
        found, done_at = done_in(tail, #tail - #ending + 1)
    end
    if not found then return 'unknown' end
    if not ready[status] then return 'forgotten' end
    if not done_at then return 'unknown' end
    if done_at < done_before then return 'old', done_at end
    return 'fresh'
end

local unknown = {}
for i = 1, count do
    local key = keys[i]
    local verdict, done_at = judge(key)
    if verdict == 'old' then
        local pttl = ttl_left(key)
        if pttl >= 0 and is_its_own(pttl, done_at) then
            longer = longer + 1
        else
            old[#old + 1] = key
        end
    elseif verdict ~= 'fresh' and verdict ~= 'message' then
        local pttl = read('PTTL', key)
        if verdict == 'unknown' then
            -- With a TTL nothing can become of it, unless the TTL may be the backend's.
            if pttl == -1 or ignore_ttl or #backend_ttls_s > 0 then
                unknown[#unknown + 1] = i
                unknown[#unknown + 1] = read('STRLEN', key)
            end
        else
            if pttl == -1 then forgotten[#forgotten + 1] = key end
            if pttl ~= -2 and verdict == 'unreadable' then unreadable = unreadable + 1 end
        end
    end
end
for i = count + 1, #keys do
    local key = keys[i]
    if read('PTTL', key) == -1 and not holds_messages(key) then forgotten[#forgotten + 1] = key end
end
"""

_RECHECK = r"""
local unknown = {}
for i = 1, count do
    local key, at = keys[i], 7 + (i - 1) * 6
    local verdict, length, done_at = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
    local date_at, date, tail = tonumber(ARGV[at + 3]), ARGV[at + 4], ARGV[at + 5]
    if read('STRLEN', key) == length
        and (verdict == 'expire' or read('GETRANGE', key, date_at, date_at + #date - 1) == date)
        and read('GETRANGE', key, -#tail, -1) == tail
    then
        if verdict == 'expire' then
            if read('PTTL', key) == -1 then forgotten[#forgotten + 1] = key end
        else
            local pttl = ttl_left(key)
            if pttl >= 0 and is_its_own(pttl, done_at) then
                longer = longer + 1
            else
                old[#old + 1] = key
            end
        end
    end
end
"""

_CHANGE = r"""
-- How many keys a command changed, and the server's error if it refused. It does not raise the
-- error, since then the counts of the changes before it would be lost.
local function change(command, ...)
    local answer = pcall_redis(command, ...)
    if type(answer) == 'table' and answer.err then return 0, refusal(command, answer.err) end
    return answer
end

local function act()
    local deleted, cleaned, refused = 0, 0, nil
    if #old > 0 then deleted, refused = change('UNLINK', unpack(old)) end
    for i = 1, #forgotten do
        local done, why_not = change('PEXPIRE', forgotten[i], ttl_ms)
        cleaned, refused = cleaned + done, refused or why_not
        if why_not then break end
    end
    return deleted, cleaned, refused
end
"""

_COUNT_ONLY = r"""
local function act() return #old, #forgotten end
"""

_ANSWER = r"""
local deleted, cleaned, refused = act()
return {deleted, cleaned, unreadable, longer, refused or '', unknown}
"""


@dataclass(frozen=True)
class Script:
    """A script, and the digest by which the server knows it."""

    source: str
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        digest = sha1(self.source.encode()).hexdigest()  # noqa: S324 - what EVALSHA goes by
        object.__setattr__(self, "digest", digest)


#: Delete, and give TTLs.
REAL_PAGE = Script(_COMMON + _PAGE + _CHANGE + _ANSWER)
REAL_RECHECK = Script(_COMMON + _RECHECK + _CHANGE + _ANSWER)

#: Count what the real ones would do, and have no command that writes.
DRY_PAGE = Script(_COMMON + _PAGE + _COUNT_ONLY + _ANSWER)
DRY_RECHECK = Script(_COMMON + _RECHECK + _COUNT_ONLY + _ANSWER)


def common_arguments(policy: Policy) -> list[bytes | int]:
    """The policy as arguments of both scripts, from the third on."""
    bounds = " ".join(f"{least} {most}" for least, most in policy.backend_ttls_s)
    return [policy.ttl_ms, int(policy.ignore_ttl), TAIL_BYTES, bounds.encode()]


def page_arguments(policy: Policy) -> list[bytes | int]:
    """What the script of a page gets behind :func:`common_arguments`."""
    states = " ".join(sorted(policy.ready_states)).encode()
    return [len(policy.task_prefix), policy.done_before, policy.naive_ahead_s, states]
