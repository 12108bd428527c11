"""The scripts that run in the store, each of them at once: an admission, a settlement, a renewal, a look, a probe.

Their arithmetic is that of ``limits`` and ``ledger``, by the clock of the store. All names of keys have one hash tag,
so that all of them are on one node of a cluster. An account has a hash with its counts, a sorted set with the leases of
its running requests, a hash with leases that are over, and a number for each budget and period.
Answers are one line of numbers, the cheapest one to read.
"""

from __future__ import annotations

from aigw.store.script_parts import COMMON, KEPT_SECONDS

ADMIT = (
    COMMON
    + """
local lease, tokens, money, lease_ms = arg(), arg(), arg(), number()
local asked, asked_money = tonumber(tokens), tonumber(money)
local accounts = {}
local kind, which, wait, used, spent_budget = 0, 0, 0, 0, 0
local function reach(a_kind, index, a_wait, a_used, budget)
  if kind == 0 then kind, which, wait, used, spent_budget = a_kind, index, a_wait, a_used, budget or 0 end
end
for i = 1, number() do
  local account = read_account()
  accounts[i] = account
  for j, budget in ipairs(account.budgets) do
    local before, needed = budget.spent + budget.held, budget.usd and asked_money or asked
    if before + needed > budget.limit or (budget.usd and before >= budget.limit) then
      reach(4, i, 0, before, j)
    end
  end
  if account.tokens > 0 and asked > 0 and account.spent + account.held + asked > account.tokens then
    reach(2, i, asked > account.tokens and -1 or account.ends - now, account.spent + account.held)
  end
  if account.rate > 0 and account.used + 1 > account.rate + 1e-6 then
    reach(1, i, math.max(0, (account.used + 1 - account.rate) * account.rate_ms / account.rate), account.rate)
  end
end
if kind == 0 then
  for i, account in ipairs(accounts) do
    if account.slots > 0 and account.running >= account.slots then reach(3, i, 1000, account.slots) end
  end
end
if kind == 0 then
  for _, account in ipairs(accounts) do
    account.used, account.held = account.used + 1, account.held + asked
    redis.call('HSET', account.hash, 'at', string.format('%.3f', now))
    if account.rate > 0 then redis.call('HSET', account.hash, 'requests', string.format('%.9f', account.used)) end
    write_window(account)
    redis.call('HINCRBY', account.hash, 'taken', 1)
    lend(account, lease .. '|' .. tokens .. '|' .. money, lease_ms)
    keep_leases(account)
  end
elseif kind ~= 3 then
  for _, account in ipairs(accounts) do
    redis.call('HINCRBY', account.hash, 'refused', 1)
    keep(account)
  end
end
local rate, left, reset, window, window_left, window_reset = -1, 0, 0, -1, 0, 0
for _, account in ipairs(accounts) do
  local room = math.floor(account.rate - account.used + 1e-6)
  if account.rate > 0 and (rate < 0 or room < left) then
    rate, left, reset = account.rate, room, account.used * account.rate_ms / account.rate
  end
  room = account.tokens - account.spent - account.held
  if account.tokens > 0 and (window < 0 or room < window_left) then
    window, window_left, window_reset = account.tokens, room, account.ends - now
  end
end
return line(kind, which, wait, used, spent_budget, rate, left, reset, window, window_left, window_reset)
"""
)

SETTLE = (
    COMMON
    + """
local member, tokens, money, taken, how = arg(), arg(), arg(), arg(), arg()
for _ = 1, number() do
  local account = read_account()
  local state = free(account, member) and 'held' or take_back(account, member)
  if how ~= 'first' then remember(account, member, 'settled') end
  write_window(account)
  if state and state ~= 'settled' or not state and how ~= 'again' then
    charge(account, tokens, money)
    add(account.hash, 'taken', taken)
  end
  keep(account)
end
return redis.status_reply('0')
"""
)

RENEW = (
    COMMON
    + """
local lease_ms = number()
arg()
local account = read_account()
for _ = at + 1, #ARGV do
  local member = arg()
  if take_back(account, member) ~= 'settled' then lend(account, member, lease_ms) end
end
keep_leases(account)
return redis.status_reply('0')
"""
)

USAGE = (
    COMMON
    + """
local account = read_account()
local got = redis.call('HMGET', account.hash, 'taken', 'used', 'cost', 'refused')
local numbers = {tonumber(got[1] or 0), tonumber(got[2] or 0), tonumber(got[3] or 0), tonumber(got[4] or 0),
  account.running, account.used, account.spent, account.held, account.ends - now, account.held_money}
for _, budget in ipairs(account.budgets) do numbers[#numbers + 1] = budget.spent end
return line(unpack(numbers))
"""
)

REFUSE = """
for _, hash in ipairs(KEYS) do
  redis.call('HINCRBY', hash, 'refused', 1)
  redis.call('PEXPIRE', hash, KEPT)
end
return redis.status_reply('0')
""".replace("KEPT", str(KEPT_SECONDS * 1000))

PROBE = """
local name = KEYS[1]
redis.call('TIME')
redis.call('DEL', name)
redis.call('HSET', name, 'n', '0')
redis.call('HINCRBY', name, 'n', 1)
redis.call('HMGET', name, 'n')
redis.call('HGET', name, 'n')
redis.call('HDEL', name, 'n')
redis.call('ZADD', name, 1, 'n')
redis.call('ZRANGEBYSCORE', name, '-inf', 1, 'LIMIT', 0, 1)
redis.call('ZCARD', name)
redis.call('ZREM', name, 'n')
redis.call('INCRBY', name, 1)
redis.call('DECRBY', name, 1)
redis.call('GET', name)
redis.call('EXISTS', name)
redis.call('PEXPIREAT', name, 9999999999999)
redis.call('PEXPIRE', name, 60000)
redis.call('PTTL', name)
local time = redis.call('TIME')
redis.call('SETNX', KEYS[2], time[1] .. '.' .. time[2])
redis.call('PEXPIRE', KEYS[2], KEPT)
return redis.status_reply(redis.call('GET', KEYS[2]))
""".replace("KEPT", str(KEPT_SECONDS * 1000))
