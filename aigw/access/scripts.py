"""The scripts that run in the store, each of them at once: an admission, a settlement, a renewal, a look.

Their arithmetic is that of ``limits`` and ``ledger``, by the clock of the store. All names of keys have one hash tag,
so that all of them are on one node of a cluster. An account has a hash with its counts, a sorted set with the leases of
its running requests, and a number for each budget and period.

A lease is ``ID|TOKENS|MONEY``: what its request has reserved. A lease that is not renewed in time is free again.
Answers are one line of numbers, the cheapest one to read.
"""

LEASE_SECONDS = 15.0
RENEW_SECONDS = 10.0
KEPT_SECONDS = 40 * 86400  # an account that is not used is forgotten

_COMMON = """
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local at, key_at = 0, 0
local function arg() at = at + 1; return ARGV[at] end
local function number() return tonumber(arg()) end
local function key() key_at = key_at + 1; return KEYS[key_at] end
local function add(hash, field, amount)
  if tonumber(amount) ~= 0 then redis.call('HINCRBY', hash, field, amount) end
end
local function free(account, member)
  if redis.call('ZREM', account.leases, member) == 1 then
    local tokens, money = string.match(member, '|(%d+)|(%d+)$')
    add(account.hash, 'held_tokens', '-' .. tokens)
    add(account.hash, 'held_money', '-' .. money)
  end
end
local function keep(account) redis.call('PEXPIRE', account.hash, KEPT) end
local function lend(account, member, lease_ms)
  if redis.call('ZADD', account.leases, string.format('%.0f', now + lease_ms), member) == 1 then
    local tokens, money = string.match(member, '|(%d+)|(%d+)$')
    add(account.hash, 'held_tokens', tokens)
    add(account.hash, 'held_money', money)
  end
  redis.call('PEXPIRE', account.leases, 4 * lease_ms)
  keep(account)
end
local function read_account()
  local account = {hash = key(), leases = key(), rate = number(), rate_ms = number(), tokens = number(),
    tokens_ms = number(), slots = number(), budgets = {}}
  for i = 1, number() do
    account.budgets[i] = {key = key(), limit = number(), usd = arg() == '1', ends = number()}
  end
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', account.leases, '-inf', string.format('%.0f', now))) do
    free(account, member)
  end
  local got = redis.call('HMGET', account.hash, 'requests', 'at', 'spent', 'ends', 'held_tokens', 'held_money')
  account.used = tonumber(got[1] or 0)
  local elapsed = math.max(0, now - tonumber(got[2] or now))
  if account.rate > 0 then
    account.used = math.max(0, account.used - elapsed * account.rate / account.rate_ms)
  end
  account.spent, account.ends = tonumber(got[3] or 0), tonumber(got[4] or 0)
  if account.tokens > 0 and (now >= account.ends or account.ends - now > account.tokens_ms) then
    account.spent, account.ends, account.turned = 0, now + account.tokens_ms, true
  end
  account.held = math.max(0, tonumber(got[5] or 0))
  account.held_money = math.max(0, tonumber(got[6] or 0))
  for _, budget in ipairs(account.budgets) do
    budget.spent = tonumber(redis.call('GET', budget.key) or 0)
    budget.held = budget.usd and account.held_money or account.held
  end
  account.running = redis.call('ZCARD', account.leases)
  return account
end
local function write_window(account)
  if account.turned then
    redis.call('HSET', account.hash, 'spent', '0', 'ends', string.format('%.3f', account.ends))
  end
end
local function line(...)
  local words = {}
  for i = 1, select('#', ...) do words[i] = string.format('%.3f', (select(i, ...))) end
  return redis.status_reply(table.concat(words, ' '))
end
""".replace("KEPT", str(KEPT_SECONDS * 1000))

ADMIT = (
    _COMMON
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
    if account.rate > 0 then
      local share = string.format('%.9f', account.used)
      redis.call('HSET', account.hash, 'requests', share, 'at', string.format('%.3f', now))
    end
    write_window(account)
    redis.call('HINCRBY', account.hash, 'taken', 1)
    lend(account, lease .. '|' .. tokens .. '|' .. money, lease_ms)
  end
elseif kind ~= 3 then
  redis.call('HINCRBY', accounts[which].hash, 'refused', 1)
  keep(accounts[which])
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
    _COMMON
    + """
local member, tokens, money, taken = arg(), arg(), arg(), arg()
for i = 1, number() do
  local account = read_account()
  free(account, member)
  write_window(account)
  if account.tokens > 0 then add(account.hash, 'spent', tokens) end
  add(account.hash, 'used', tokens)
  add(account.hash, 'cost', money)
  add(account.hash, 'taken', taken)
  for _, budget in ipairs(account.budgets) do
    local amount = budget.usd and money or tokens
    if tonumber(amount) ~= 0 then
      redis.call('INCRBY', budget.key, amount)
      redis.call('PEXPIREAT', budget.key, budget.ends)
    end
  end
  keep(account)
end
return redis.status_reply('0')
"""
)

RENEW = (
    _COMMON
    + """
local lease_ms = number()
local account = {hash = key(), leases = key()}
for _ = at + 1, #ARGV do lend(account, arg(), lease_ms) end
return redis.status_reply('0')
"""
)

USAGE = (
    _COMMON
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
redis.call('SET', KEYS[1], '1', 'PX', 60000)
return redis.status_reply('0')
"""
