"""The cleanup's scripts: the rules of :mod:`worker_guard.results.selection`, in Lua, on the server.

The server runs nothing else during a script, so nobody writes between its check and its delete. A
script has three parts: one decides, one acts (or, in a dry run, only counts), and one goes through
the keys, which it gets from its caller or from its own SCAN.

The scripts need Lua 5.1, as in Redis 6.2 and later and in Valkey. A call ends when its time is used
up, and returns the keys that it did not get to.
"""

from __future__ import annotations

from worker_guard.results.selection import VALUE_LIMIT_BYTES, Policy

_DECIDE = r"""
local budget_us, now = tonumber(ARGV[3]), tonumber(ARGV[4])
local done_before, ttl_ms = tonumber(ARGV[5]), ARGV[6]
local naive_ahead_s, limit = tonumber(ARGV[7]), tonumber(ARGV[8])
local ignore_ttl = ARGV[9] == '1'
local task_prefix, task_prefix_length = ARGV[10], #ARGV[10]
local call, pcall_redis = redis.call, redis.pcall
local sub, find, match, byte = string.sub, string.find, string.match, string.byte
local floor = math.floor
-- A new instance: the one that all scripts share takes numbers that JSON does not allow.
local has_own, own = pcall(function() return cjson.new() end)
if has_own then own.decode_invalid_numbers(false) else own = cjson end
local decode = own.decode
-- Replicates what the script did, not the script; the only mode of newer servers.
if redis.replicate_commands then redis.replicate_commands() end

local at = 11
local function list()
    local items = {}
    for i = 1, tonumber(ARGV[at]) do items[i] = ARGV[at + i] end
    at = at + #items + 1
    return items
end
-- Each pattern as its pieces; see Glob.lua.
local function patterns()
    local items = list()
    for i = 1, #items do
        local pieces = {}
        for piece in string.gmatch(items[i], '[^%z]+') do pieces[#pieces + 1] = piece end
        items[i] = pieces
    end
    return items
end
local protected, state_prefixes, state_patterns = patterns(), list(), patterns()
local ready = {}
for _, state in ipairs(list()) do ready[state] = true end
-- Two numbers for each: from, and to.
local backend_ttls_s = list()
for i = 1, #backend_ttls_s do backend_ttls_s[i] = tonumber(backend_ttls_s[i]) end

-- The processor's time, if the server has os.clock: there, TIME stands still within a script.
local has_clock, clock = pcall(function() return os.clock end)
local function now_us()
    if has_clock and clock then return clock() * 1e6 end
    local time = call('TIME')
    return time[1] * 1e6 + time[2]
end

local function begins(key, prefixes)
    for i = 1, #prefixes do
        if sub(key, 1, #prefixes[i]) == prefixes[i] then return true end
    end
    return false
end

local function fits_all(key, pieces)
    local last = 0
    for i = 1, #pieces do
        local _, stop = find(key, pieces[i], last + 1)
        if not stop then return false end
        last = stop
    end
    return true
end

local function fits(key, globs)
    for i = 1, #globs do
        if fits_all(key, globs[i]) then return true end
    end
    return false
end

-- A command's answer, or nil if the key has the wrong type for it.
local function of_type(...)
    local answer = pcall_redis(...)
    if type(answer) ~= 'table' or not answer.err then return answer end
    if not find(answer.err, 'WRONGTYPE', 1, true) then error(answer.err) end
end

-- Whether the key is a list of the broker's messages.
local function holds_messages(key)
    local item = of_type('LINDEX', key, 0)
    return item and sub(item, 1, 1) == '{'
        and find(item, '"delivery_tag"', 1, true) and find(item, '"body"', 1, true)
end

-- Seconds from 1970 to a date, by its text. Cached, as the results of a page share few dates.
local days = {}
local function day(date)
    local text = sub(date, 1, 10)
    local known = days[text]
    if known ~= nil then return known end
    local y, mo, d = match(text, '^(%d%d%d%d)%-(%d%d)%-(%d%d)$')
    known = false
    if y then
        y, mo, d = y + 0, mo + 0, d + 0
        if mo >= 1 and mo <= 12 and d >= 1 and d <= 31 then
            local year = mo <= 2 and y - 1 or y
            local leap_days = floor(year / 4) - floor(year / 100) + floor(year / 400)
            local month_days = floor((153 * ((mo + 9) % 12) + 2) / 5)
            known = (365 * year + leap_days + month_days + d - 719469) * 86400
        end
    end
    days[text] = known
    return known
end

local function moment(date)
    local midnight = day(date)
    if not midnight or not find(date, '^[T ]%d%d:%d%d:%d%d', 11) then return nil end
    local h1, h2, _, m1, m2, _, s1, s2 = byte(date, 12, 19)
    local h, mi, s = h1 * 10 + h2 - 528, m1 * 10 + m2 - 528, s1 * 10 + s2 - 528
    if h > 23 or mi > 59 or s > 61 then return nil end
    local t = midnight + h * 3600 + mi * 60 + s
    if find(date, '^%+00:00$', 20) then return t end
    if find(date, '^%.%d+%+00:00$', 20) then return t + 1 end
    local rest = sub(date, 20)
    local fraction, zone = match(rest, '^(%.%d+)(.*)$')
    zone = zone or rest
    if fraction then t = t + 1 end
    if zone == 'Z' then return t end
    if zone == '' then return t + naive_ahead_s end
    local sign, zh, zm, zs = match(zone, '^([+-])(%d%d):?(%d%d)$')
    if not sign then sign, zh, zm, zs = match(zone, '^([+-])(%d%d):?(%d%d):(%d%d)$') end
    if not sign then return nil end
    local offset = zh * 3600 + zm * 60 + (zs or 0)
    return sign == '+' and t - offset or t + offset
end

-- 'delete' with its date, 'fresh', or 'forgotten' or 'unreadable', which both get a TTL if they
-- have none.
local function judge(value)
    if find(value, '\0', 1, true) then return 'unreadable' end
    local ok, record = pcall(decode, value)
    if not ok or type(record) ~= 'table' or type(record.status) ~= 'string' then
        return 'unreadable'
    end
    if not ready[record.status] then return 'forgotten' end
    local done_at = type(record.date_done) == 'string' and moment(record.date_done)
    if not done_at then return 'unreadable' end
    if done_at < done_before then return 'delete', done_at end
    return 'fresh'
end

-- Whether a result that is old enough has a TTL that the backend does not give by itself.
local function has_its_own_ttl(key, done_at)
    if ignore_ttl then return false end
    local pttl = call('PTTL', key)
    if pttl < 0 then return false end
    local given_s = now - done_at + pttl / 1000
    for i = 1, #backend_ttls_s, 2 do
        if backend_ttls_s[i] <= given_s and given_s <= backend_ttls_s[i + 1] then return false end
    end
    return true
end

local unreadable, longer, old, forgotten = 0, 0, {}, {}
local weight = 0
local function look(key)
    if sub(key, 1, task_prefix_length) == task_prefix then
        local verdict, done_at = 'unreadable', nil
        local length = of_type('STRLEN', key)
        if length and length > 0 and length <= limit then
            verdict, done_at = judge(call('GET', key))
            weight = weight + length
        elseif not length and holds_messages(key) then
            return
        end
        if verdict == 'delete' then
            if has_its_own_ttl(key, done_at) then
                longer = longer + 1
            else
                old[#old + 1] = key
            end
        elseif verdict ~= 'fresh' then
            local pttl = call('PTTL', key)
            if pttl == -1 then forgotten[#forgotten + 1] = key end
            if pttl ~= -2 and verdict == 'unreadable' then unreadable = unreadable + 1 end
        end
        return
    end
    local fitting = begins(key, state_prefixes) or fits(key, state_patterns)
    if not fitting or fits(key, protected) then return end
    if call('PTTL', key) == -1 and not holds_messages(key) then
        forgotten[#forgotten + 1] = key
    end
end
"""

_ACT = r"""
-- How many keys a command changed, and the server's error if it refused. It does not raise the
-- error, since then the counts of the changes before it would be lost.
local function change(command, ...)
    local answer = pcall_redis(command, ...)
    if type(answer) == 'table' and answer.err then
        return 0, "'" .. string.lower(command) .. "': " .. answer.err
    end
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

_CLEANUP = r"""
local started, cursor, keys = now_us(), '0', KEYS
if ARGV[1] ~= '' then
    local page = call('SCAN', ARGV[1], 'COUNT', ARGV[2])
    cursor, keys = page[1], page[2]
elseif #KEYS == 0 then
    keys = list()
end
local rest, next_check = {}, 0
local n = #keys
for i = 1, n do
    look(keys[i])
    weight = weight + 1024
    if weight > next_check then
        next_check = weight + 16384
        if i < n and now_us() - started > budget_us then
            for j = i + 1, n do rest[#rest + 1] = keys[j] end
            n = i
            break
        end
    end
end
local deleted, cleaned, refused = act()
return {cursor, n, deleted, cleaned, unreadable, longer, rest, refused or ''}
"""

#: Deletes, and gives TTLs.
REAL = _DECIDE + _ACT + _CLEANUP

#: Counts what :data:`REAL` would do, and has no command that writes.
DRY_RUN = _DECIDE + _COUNT_ONLY + _CLEANUP


def arguments(policy: Policy) -> list[bytes | int]:
    """The policy as arguments of the scripts, from the fifth on."""
    lists: list[list[bytes]] = [
        [glob.lua for glob in policy.protected],
        list(policy.state_prefixes),
        [glob.lua for glob in policy.state_patterns],
        [state.encode() for state in sorted(policy.ready_states)],
        [b"%d" % bound for band in policy.backend_ttls_s for bound in band],
    ]
    given: list[bytes | int] = [
        policy.done_before,
        policy.ttl_ms,
        policy.naive_ahead_s,
        VALUE_LIMIT_BYTES,
        int(policy.ignore_ttl),
        policy.task_prefix,
    ]
    for items in lists:
        given += [len(items), *items]
    return given
