"""What the scripts of the store share: how they read an account, and what leases are.

A lease is ``ID|TOKENS|MONEY``: what its request has reserved. A lease that is not renewed in time has lapsed: its slot
is free, and what it had reserved is charged: its gateway may be dead, and its provider has worked. If the gateway was
only away, its renewal or settlement takes that back. Leases that lapsed are remembered for an hour, and so are those
whose settlement was sent twice: a script that runs late, or again, finds them there and does nothing.

The arithmetic of a lease: slots of a gateway that was killed have to be free within 15 s, and a request that waits asks
each 0.5 s, so a lease may have 14 s. It is renewed at the first tick after 10 s, a tick is 1 s, so after 11 s at most.
3 s are left for a renewal that is lost: the store is probed at the next tick, 1 s later (2 s with a new connection),
and all leases are renewed at the moment in which it answers, so after 13 s at most.

A clock of the store that is set back makes no window longer than it was, and loses none: what is spent stays.
"""

LEASE_SECONDS = 14.0
RENEW_SECONDS = 10.0
KEPT_SECONDS = 40 * 86400  # an account that is not used is forgotten
OVER_SECONDS = 3600  # a lease that is over

# How a settlement goes, if its lease is not in the store:
FIRST = "first"  # it is charged: the store was emptied
AGAIN = "again"  # it is not charged: it was, and the answer was lost
ONCE = "once"  # it is charged, but not a second time

COMMON = (
    """
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local at, key_at = 0, 0
local function arg() at = at + 1; return ARGV[at] end
local function number() return tonumber(arg()) end
local function key() key_at = key_at + 1; return KEYS[key_at] end
local function add(hash, field, amount)
  if tonumber(amount) ~= 0 then redis.call('HINCRBY', hash, field, amount) end
end
local function reserved(member) return string.match(member, '|(%d+)|(%d+)$') end
local function free(account, member)
  if redis.call('ZREM', account.leases, member) == 0 then return false end
  local tokens, money = reserved(member)
  add(account.hash, 'held_tokens', '-' .. tokens)
  add(account.hash, 'held_money', '-' .. money)
  return true
end
local function remember(account, member, state)
  redis.call('HSET', account.over, member, state)
  if redis.call('PTTL', account.over) < 0 then redis.call('PEXPIRE', account.over, OVER) end
end
local function keep(account) redis.call('PEXPIRE', account.hash, KEPT) end
local function write_window(account)
  if account.turned then
    local spent = string.format('%.0f', account.spent)
    redis.call('HSET', account.hash, 'spent', spent, 'ends', string.format('%.3f', account.ends))
    account.turned = false
  end
end
local function charge(account, tokens, money)
  write_window(account)
  if account.tokens > 0 then add(account.hash, 'spent', tokens) end
  add(account.hash, 'used', tokens)
  add(account.hash, 'cost', money)
  for _, budget in ipairs(account.budgets) do
    local amount = budget.usd and money or tokens
    if tonumber(amount) ~= 0 then
      redis.call('INCRBY', budget.key, amount)
      redis.call('PEXPIREAT', budget.key, budget.ends)
    end
  end
end
local function lapse(account, member)
  free(account, member)
  if redis.call('HGET', account.over, member) then return end  -- it was settled before it came
  local tokens, money = reserved(member)
  charge(account, tokens, money)
  local charged = {string.format('%.3f', account.tokens > 0 and account.ends or 0)}
  for _, budget in ipairs(account.budgets) do charged[#charged + 1] = budget.key end
  remember(account, member, table.concat(charged, '\\n'))
end
local function take_back(account, member)
  local state = redis.call('HGET', account.over, member)
  if not state or state == 'settled' then return state end
  local charged = {}
  for each in string.gmatch(state, '[^\\n]+') do charged[each] = true end
  local tokens, money = reserved(member)
  if account.tokens > 0 and charged[string.format('%.3f', account.ends)] then
    add(account.hash, 'spent', '-' .. tokens)
  end
  add(account.hash, 'used', '-' .. tokens)
  add(account.hash, 'cost', '-' .. money)
  for _, budget in ipairs(account.budgets) do
    local amount = budget.usd and money or tokens
    if charged[budget.key] and tonumber(amount) ~= 0 and redis.call('EXISTS', budget.key) == 1 then
      redis.call('DECRBY', budget.key, amount)
    end
  end
  redis.call('HDEL', account.over, member)
  return 'lapsed'
end
local function lend(account, member, lease_ms)
  if redis.call('ZADD', account.leases, string.format('%.0f', now + lease_ms), member) == 1 then
    local tokens, money = reserved(member)
    add(account.hash, 'held_tokens', tokens)
    add(account.hash, 'held_money', money)
  end
end
local function keep_leases(account)
  redis.call('PEXPIRE', account.leases, KEPT)
  keep(account)
end
local function set_back(account)
  redis.call('HSET', account.hash, 'at', string.format('%.3f', now))
  local ends = string.format('%.0f', now + LEASE)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', account.leases, '(' .. ends, '+inf')) do
    redis.call('ZADD', account.leases, ends, member)
  end
end
local function read_account()
  local account = {hash = key(), leases = key(), over = key(), rate = number(), rate_ms = number(), tokens = number(),
    tokens_ms = number(), slots = number(), budgets = {}}
  for i = 1, number() do
    account.budgets[i] = {key = key(), limit = number(), usd = arg() == '1', ends = number()}
  end
  local function read()
    local got = redis.call('HMGET', account.hash, 'requests', 'at', 'spent', 'ends', 'held_tokens', 'held_money')
    account.used = tonumber(got[1] or 0)
    local elapsed = now - tonumber(got[2] or now)
    if elapsed < -1000 then set_back(account) end
    elapsed = math.max(0, elapsed)
    if account.rate > 0 then
      account.used = math.max(0, account.used - elapsed * account.rate / account.rate_ms)
    end
    account.spent, account.ends = tonumber(got[3] or 0), tonumber(got[4] or 0)
    if account.tokens > 0 and now >= account.ends then
      account.spent, account.ends, account.turned = 0, now + account.tokens_ms, true
    elseif account.tokens > 0 and account.ends - now > account.tokens_ms then  -- a clock set back, or another limit
      account.ends, account.turned = now + account.tokens_ms, true
    end
    account.held = math.max(0, tonumber(got[5] or 0))
    account.held_money = math.max(0, tonumber(got[6] or 0))
  end
  read()
  local late = redis.call('ZRANGEBYSCORE', account.leases, '-inf', string.format('%.0f', now), 'LIMIT', 0, 1000)
  if #late > 0 then
    for _, member in ipairs(late) do lapse(account, member) end
    keep(account)
    read()
  end
  for _, budget in ipairs(account.budgets) do
    budget.spent = tonumber(redis.call('GET', budget.key) or 0)
    budget.held = budget.usd and account.held_money or account.held
  end
  account.running = redis.call('ZCARD', account.leases)
  return account
end
local function line(...)
  local words = {}
  for i = 1, select('#', ...) do words[i] = string.format('%.3f', (select(i, ...))) end
  return redis.status_reply(table.concat(words, ' '))
end
""".replace("KEPT", str(KEPT_SECONDS * 1000))
    .replace("OVER", str(OVER_SECONDS * 1000))
    .replace("LEASE", f"{LEASE_SECONDS * 1000:.0f}")
)
