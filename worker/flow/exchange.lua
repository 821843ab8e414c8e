-- One gate: what all processes know of it, in one value, changed by one process at a time.
--
-- KEYS[1] is the gate; ARGV has the deed, the process's name, and the rest as JSON. Times are this
-- server's own, in milliseconds. Nothing is raised but out of what nobody else has or might still use.

local KEPT_MS = 600000     -- a gate that nobody uses is forgotten after so long
local STRANGER_MS = 60000  -- whoever was not heard of for so long is gone, whatever the reason
local OFFER_MS = 1000      -- a step that was not made for so long is offered to another process
local TURN_MS = 5000       -- with fewer slots than processes, the slots go round this often
local BURST_MS = 2000      -- permits are kept for so long
local SUMS = {
  'cut', 'succeeded', 'refused', 'failed', 'latency_seconds', 'slot_seconds', 'limited_seconds',
}

local key, deed, process = KEYS[1], ARGV[1], ARGV[2]
local ask = cjson.decode(ARGV[3])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local text = redis.call('GET', key)
local gate = text and cjson.decode(text)

local function keep()
  local lasts = KEPT_MS + math.max(0, gate.pause_until - now)
  redis.call('SET', key, cjson.encode(gate), 'PX', string.format('%d', lasts))
end

local function nothing()
  local sums = {}
  for _, name in ipairs(SUMS) do sums[name] = 0 end
  return sums
end

local function add(sums, more, sign)
  for _, name in ipairs(SUMS) do sums[name] = sums[name] + sign * more[name] end
end

-- The two deeds that need no more than this.

if deed == 'commit' then
  if not gate or not gate.offered or gate.epoch ~= ask.epoch then return 0 end
  gate.limit, gate.state, gate.interval = math.max(1, ask.limit), ask.state, ask.interval_ms
  gate.stepped, gate.offered, gate.taken = gate.offered, nil, nothing()
  gate.epoch = gate.epoch + 1
  keep()
  return 1
end

if deed == 'leave' then
  if gate and gate.peers[process] then
    gate.peers[process] = nil
    keep()
  end
  return 0
end

-- An exchange.

local report, limits = ask.report, ask.limits
for name, value in pairs(limits) do
  if value == cjson.null then limits[name] = nil end
end
local settle_ms = ask.liveness_ms / 2

if not gate then
  gate = {
    limit = limits.start, epoch = now, state = '', interval = ask.first_interval_ms,
    stepped = now, seen = now, sums = nothing(), taken = nothing(), peers = {}, buckets = {},
    pause_until = 0, settled_at = 0,
  }
  -- This server was emptied: others have shares, too, that they have not told of yet.
  if ask.held > 0 then gate.settled_at = now + settle_ms end
end

if now < gate.seen then
  -- The clock was set back: everything is as long ago as it was.
  local back = gate.seen - now
  gate.seen, gate.stepped, gate.offered = now, gate.stepped - back, nil
  gate.pause_until, gate.settled_at = gate.pause_until - back, gate.settled_at - back
  for _, bucket in pairs(gate.buckets) do bucket.at = bucket.at - back end
  for _, peer in pairs(gate.peers) do peer.seen = peer.seen - back end
end

local me = gate.peers[process]
local was_heard_of = me and now - me.seen <= ask.liveness_ms

if now - gate.seen > ask.liveness_ms then
  -- Nobody was heard of: the others may all be there still, if it was this server that was away.
  for _, peer in pairs(gate.peers) do
    if now - peer.seen <= STRANGER_MS then
      peer.seen = math.max(peer.seen, now - ask.liveness_ms + settle_ms)
    end
  end
  gate.sums, gate.taken, gate.stepped, gate.offered = nothing(), nothing(), now, nil
end
gate.seen = now
for name, peer in pairs(gate.peers) do
  if now - peer.seen > ask.liveness_ms then gate.peers[name] = nil end
end

-- What the process has until it reads the answer, and may have begun calls with.
local cut = math.min(report.cut, ask.held)
local base = 0
if gate.peers[process] or now < gate.settled_at then base = ask.held - cut end

local said = {}
for _, name in ipairs(SUMS) do said[name] = report[name] end
said.cut = cut
-- What happened while this server knew nothing of the process cannot be laid to an interval.
if was_heard_of then
  local news = nothing()
  add(news, said, 1)
  if me.serial == ask.serial then
    -- The answer to its last report was lost: it says again what was counted already (or, if it went on
    -- alone, does not).
    for name, amount in pairs(me.said) do news[name] = math.max(0, news[name] - amount) end
  end
  add(gate.sums, news, 1)
  if news.cut > 0 and not limits.fixed then
    gate.limit = math.max(1, gate.limit - news.cut)
    gate.epoch = gate.epoch + 1
  end
end

gate.limit = math.min(gate.limit, limits.most)
local limit = limits.fixed or gate.limit
if report.pause_seconds > 0 then
  gate.pause_until = math.max(gate.pause_until, now + math.ceil(1000 * report.pause_seconds))
end

me = {
  cap = base, in_flight = report.in_flight, demand = math.max(report.demand, report.in_flight),
  seen = now, serial = ask.serial, said = said, wants = {},
}
gate.peers[process] = me

local names = {}
for name in pairs(gate.peers) do names[#names + 1] = name end
table.sort(names)

-- Everybody gets what they need, up to the same number; what nobody needs is spread.
local function fair_shares()
  local shares, open, rest = {}, names, limit
  repeat
    local each, wanting = math.floor(rest / #open), {}
    for _, name in ipairs(open) do
      local demand = gate.peers[name].demand
      if demand <= each then
        shares[name], rest = demand, rest - demand
      else
        wanting[#wanting + 1] = name
      end
    end
    local is_even = #wanting == #open
    open = wanting
  until is_even or #open == 0
  local is_enough = #open == 0
  if is_enough then open = names end
  local each = math.floor(rest / #open)
  local place = {}
  if each == 0 and not is_enough then
    local turn = math.floor(now / TURN_MS)
    for number, name in ipairs(open) do place[name] = (number - turn) % #open end
  else
    -- The odd ones stay where they are.
    for number, name in ipairs(open) do place[name] = number - #open * gate.peers[name].cap end
  end
  table.sort(open, function(one, other) return place[one] < place[other] end)
  local odd = rest - each * #open
  for number, name in ipairs(open) do
    shares[name] = (shares[name] or 0) + each + (number <= odd and 1 or 0)
  end
  return shares
end

local room = limit
for name, peer in pairs(gate.peers) do
  if name ~= process then room = room - peer.committed end
end
me.cap = math.min(fair_shares()[process], math.max(base, room))
if now < gate.settled_at then me.cap = math.min(me.cap, base) end
me.committed = math.max(me.cap, me.in_flight, base)

-- Permits of a rate: all that there are, in equal parts among those who lack some.
local function permits(kind, per_minute, wanted, overdrawn)
  if not per_minute then
    gate.buckets[kind] = nil
    return wanted
  end
  local burst = math.max(1, per_minute / 60000 * BURST_MS)
  local bucket = gate.buckets[kind] or { level = burst, at = now }
  local level = bucket.level + per_minute / 60000 * (now - bucket.at) - math.min(0, wanted)
  -- No more debt than a minute pays off: the model server forgets, too.
  level = math.max(math.min(burst, level) - overdrawn, -per_minute)
  local given = wanted
  if wanted > 0 then
    local parts = 1
    for name, peer in pairs(gate.peers) do
      if name ~= process and peer.wants[kind] then parts = parts + 1 end
    end
    given = math.max(0, math.min(wanted, math.floor(level), math.ceil(level / parts)))
    me.wants[kind] = given < wanted or nil
    level = level - given
  end
  gate.buckets[kind] = { level = level, at = now }
  return given
end

local answer = {
  cap = me.cap,
  limit = limit,
  processes = #names,
  pause_seconds = math.max(0, gate.pause_until - now) / 1000,
  requests = permits('requests', limits.requests_per_minute, report.requests, 0),
  tokens = permits('tokens', limits.tokens_per_minute, report.tokens, report.overdrawn_tokens),
}

if limits.fixed then
  -- There is nothing to learn.
  gate.sums, gate.taken, gate.stepped, gate.offered = nothing(), nothing(), now, nil
elseif now - gate.stepped >= math.max(1, gate.interval) and not (
  gate.offered and gate.offered_epoch == gate.epoch and now - gate.offered < OFFER_MS
) then
  gate.epoch = gate.epoch + 1
  gate.offered, gate.offered_epoch = now, gate.epoch
  -- Kept until the step is made, in case that it is not.
  add(gate.taken, gate.sums, 1)
  gate.sums = nothing()
  answer.totals = { seconds = (now - gate.stepped) / 1000, limit = limit }
  for _, name in ipairs(SUMS) do answer.totals[name] = gate.taken[name] end
  answer.state, answer.epoch = gate.state, gate.epoch
end

keep()
return cjson.encode(answer)
