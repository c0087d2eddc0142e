#!lua
-- Executes the requests of one instance, in order. Redis runs one script at a time, from start to end, so all instances
-- see one order of events, and every event goes to exactly the instances whose clients must receive it.
--
-- Each instance has an inbox: a stream whose entries have consecutive ids. The events of one call become one entry in
-- the inbox of each instance concerned. PREFIX stands for `--redis-prefix`; A is an address, `instance/client`:
--
--   PREFIX:meta            hash    protocol, lineage of the Redis data, generation and its number, number of epochs,
--                                  continuous_from: since this generation, Redis has lost nothing that an instance has
--                                  seen (if_proven: its value once `unproven` is empty)
--   PREFIX:instances       set     numbers of the instances
--   PREFIX:seen            zset    instances with a beat in the last minute
--   PREFIX:unproven        set     instances that may have seen more before this generation than Redis still has
--   PREFIX:instance:N      hash    connection (newest number), executed (number of the newest request), entry (id of
--                                  the newest inbox entry), beat, generation, base (see `prepare_inbox`), dead,
--                                  rejoins (see `open`)
--   PREFIX:inbox:N         stream  the events for instance N
--   PREFIX:clients:N       hash    client -> JSON: room, username, key, share, client_id, credential, session
--   PREFIX:room:R          hash    last_id, epoch, generation, past (JSON: earlier epochs with their last ids)
--   PREFIX:log:R           stream  the newest messages; the id of an entry is the id of the message
--   PREFIX:nonces:R        hash    nonce with username -> id of the message
--   PREFIX:members:R       hash    A -> username
--   PREFIX:present:R       hash    N -> number of members on instance N
--   PREFIX:user:K          set     A of every client that uses a username with key K
--   PREFIX:holders         hash    username key -> A, for usernames that clients may not share
--   PREFIX:client_ids      hash    client_id -> A
--   PREFIX:empty           zset    rooms without members, by the time when they became empty

local call = redis.call
local position = 0

local function take()
    position = position + 1
    return ARGV[position]
end

local mode, prefix, instance = take(), take(), take()
local meta = prefix .. ':meta'
local record = prefix .. ':instance:' .. instance

local function key(kind, name)
    return prefix .. ':' .. kind .. ':' .. name
end

local function text(number)
    return string.format('%.0f', number)
end

-- In a new generation, remembers the id of the last entry of the old one (`base`). If the instance has not registered in
-- the old one, it has not seen that one's entries, so the lower `base` stays. Returns whether the instance is registered
-- and alive, so that it reads its inbox.
local function prepare_inbox(of, generation)
    local fields = call('HMGET', of, 'generation', 'entry', 'dead', 'base', 'registered')
    if fields[1] ~= generation then
        local base = tonumber(fields[2] or '0')
        if fields[5] and fields[5] ~= fields[1] then
            base = math.min(base, tonumber(fields[4]))
        end
        call('HSET', of, 'generation', generation, 'base', text(base))
    end
    return fields[1] and not fields[3]
end

-- Registers the instance, which has read its inbox up to the entry `read`, in the generation `believed`. The data of
-- Redis has a lineage, which identifies the server process that holds it. If the lineage has changed, Redis may have
-- lost its newest writes, so a new generation begins, and with it a new epoch in each room. An epoch of an earlier
-- generation counts for the messages that Redis still had when that generation ended, and for all messages if it had
-- lost nothing. If the instance must add its clients again, `rejoins` keeps this status until the instance has done so:
-- the reply may be lost.
local function open()
    local protocol, lineage, new_generation, believed, read, expiry = take(), take(), take(), take(), take(), take()
    local known = call('HMGET', meta, 'protocol', 'lineage', 'generation')
    if known[1] and known[1] ~= protocol then
        return { 'protocol', known[1] }
    end
    local generation = known[3]
    if known[2] ~= lineage or not generation then
        local number = text(call('HINCRBY', meta, 'number', 1))
        local continuous_from = call('HGET', meta, 'continuous_from') or number
        generation = number .. '-' .. new_generation
        call('HSET', meta, 'protocol', protocol, 'lineage', lineage, 'generation', generation,
            'continuous_from', number, 'if_proven', continuous_from)
        call('DEL', prefix .. ':unproven')
        for _, id in ipairs(call('ZRANGE', prefix .. ':seen', 0, -1)) do
            call('SADD', prefix .. ':unproven', id)
        end
    end
    local exists = call('EXISTS', record) == 1
    prepare_inbox(record, generation)
    local fields = call('HMGET', record, 'base', 'dead', 'executed', 'entry', 'rejoins')
    local status = fields[5] or fields[2] and 'dead' or 'known'
    local entry, base, has_read = tonumber(fields[4] or '0'), tonumber(fields[1]), tonumber(read)
    if not exists or believed == '' or entry < has_read or (believed ~= generation and base < has_read) then
        -- Redis has lost entries that the instance has read, or the instance has missed some: then `believed` is empty.
        status = 'lost'
        if believed ~= '' then
            call('HSET', meta, 'continuous_from', string.match(generation, '^%d+'))
            call('DEL', prefix .. ':unproven')
        end
        call('DEL', key('inbox', instance))
        call('HSET', record, 'executed', '0', 'entry', read)
        fields[3], fields[4] = '0', read
    else
        -- Once every instance has shown that it saw nothing that Redis has lost, no client has.
        if call('SREM', prefix .. ':unproven', instance) == 1 and call('EXISTS', prefix .. ':unproven') == 0 then
            call('HSET', meta, 'continuous_from', call('HGET', meta, 'if_proven'))
        end
    end
    if status ~= 'known' and (exists or has_read > 0) then
        call('HSET', record, 'rejoins', status)
    end
    call('HDEL', record, 'dead')
    call('HSET', record, 'registered', generation)
    call('SADD', prefix .. ':instances', instance)
    call('HINCRBY', record, 'beat', 1) -- otherwise, the others would still count from its last beat before the silence
    local connection = call('HINCRBY', record, 'connection', 1)
    call('PEXPIRE', record, expiry)
    return { status, generation, text(connection), fields[3] or '0', fields[4] or '0' }
end

if mode == 'open' then
    return open()
end

local generation, connection, read, beats, previous = take(), take(), take(), take(), tonumber(take())
local history, max_bytes, max_empty, ttl, expiry =
    tonumber(take()), tonumber(take()), tonumber(take()), take(), take()

if call('HGET', meta, 'generation') ~= generation then
    return { 'stale' }
end
local own = call('HMGET', record, 'connection', 'executed', 'dead')
if own[1] ~= connection or own[3] then
    return { 'stale' }
end
local executed = tonumber(own[2] or '0')
if executed < previous then
    return { 'stale' } -- Redis has rejected an earlier call, whose requests must be sent again before these
end

local quote = cjson.encode
local outgoing, clients, rooms, present = {}, {}, {}, {}

local function push(to, event)
    outgoing[to] = outgoing[to] or {}
    table.insert(outgoing[to], event)
end

-- The instances with members of a room.
local function instances_of(room)
    if not present[room] then
        present[room] = call('HKEYS', key('present', room))
    end
    return present[room]
end

local function push_to_room(room, event, except)
    for _, id in ipairs(instances_of(room)) do
        if id ~= except then
            push(id, event)
        end
    end
end

local function address(id, client)
    return id .. '/' .. client
end

local function split(of)
    return string.match(of, '^(%d+)/(%d+)$')
end

local function client_of(id, client)
    local of = address(id, client)
    if clients[of] == nil then
        local found = call('HGET', key('clients', id), client)
        clients[of] = found and cjson.decode(found) or false
    end
    return clients[of]
end

local function save(id, client, fields)
    clients[address(id, client)] = fields
    call('HSET', key('clients', id), client, cjson.encode(fields))
end

-- The address of the client that holds a username, if clients may not share it.
local function holder_of(name_key, share)
    local holder = share ~= '1' and call('HGET', prefix .. ':holders', name_key)
    return holder and client_of(split(holder)) and holder
end

-- The address of the client with a client id.
local function owner_of(client_id)
    local owner = client_id ~= '' and call('HGET', prefix .. ':client_ids', client_id)
    return owner and client_of(split(owner)) and owner
end

local function claim(fields, of)
    call('SADD', key('user', fields.key), of)
    if fields.share ~= '1' then
        call('HSET', prefix .. ':holders', fields.key, of)
    end
end

local function release(fields, of)
    call('SREM', key('user', fields.key), of)
    if call('HGET', prefix .. ':holders', fields.key) == of then
        call('HDEL', prefix .. ':holders', fields.key)
    end
end

-- Returns a room's state. In a new generation, the room gets a new epoch.
local function room_of(room)
    local state = rooms[room]
    if state then
        return state
    end
    local found = call('HMGET', key('room', room), 'last_id', 'epoch', 'generation', 'past')
    state = { last_id = tonumber(found[1] or '0'), epoch = found[2], past = cjson.decode(found[4] or '[]') }
    if found[3] ~= generation then
        if state.epoch then
            table.insert(state.past, { state.epoch, text(state.last_id) })
            if #state.past > 64 then
                table.remove(state.past, 1)
            end
        end
        state.epoch = generation .. '-' .. text(call('HINCRBY', meta, 'epochs', 1))
        call('HSET', key('room', room), 'last_id', text(state.last_id), 'epoch', state.epoch,
            'generation', generation, 'past', cjson.encode(state.past))
        push_to_room(room, '{"renewed":[' .. quote(room) .. ',' .. quote(state.epoch) .. ']}')
    end
    rooms[room] = state
    return state
end

-- Whether the room's history contains the message `since` that a client saw under an epoch.
local function is_same_history(state, epoch, since)
    if epoch == state.epoch then
        return since <= state.last_id
    end
    for _, earlier in ipairs(state.past) do
        if earlier[1] == epoch then
            local number = tonumber(string.match(epoch, '^%d+'))
            local is_continued = number >= tonumber(call('HGET', meta, 'continuous_from'))
            return since <= (is_continued and state.last_id or tonumber(earlier[2]))
        end
    end
    return false
end

-- Returns the newest messages with ids between `since` and `before`, at most `count` of them and `bytes` long, as JSON;
-- their number; the first id. With `is_page`, a message longer than `bytes` is a page of its own, so that paging cannot
-- get stuck.
local function messages_of(room, before, since, count, bytes, is_page)
    local found, first, upper = {}, before, '(' .. text(before) .. '-0'
    while before > 0 and #found < count and bytes >= 0 do
        local chunk = call('XREVRANGE', key('log', room), upper, '(' .. text(since) .. '-0', 'COUNT', math.min(count - #found, 64))
        for _, entry in ipairs(chunk) do
            local id = string.match(entry[1], '^%d+')
            bytes = bytes - #entry[2][2] - 40
            if bytes < 0 and not (is_page and #found == 0) then
                break
            end
            table.insert(found, '[' .. id .. ',' .. entry[2][2] .. ']')
            first, upper = tonumber(id), '(' .. entry[1]
        end
        if #chunk == 0 then
            break
        end
    end
    for at = 1, math.floor(#found / 2) do -- oldest first
        found[at], found[#found + 1 - at] = found[#found + 1 - at], found[at]
    end
    return '[' .. table.concat(found, ',') .. ']', #found, first
end

-- Returns the part of an event that describes a room's history: epoch, last id, whether the messages are exactly those
-- after `since`, and the messages.
local function backlog(room, epoch, since)
    local state = room_of(room)
    local is_same = epoch ~= '' and is_same_history(state, epoch, since)
    local messages, count = messages_of(room, 1e16, is_same and since or 0, history, max_bytes)
    local resumed = is_same and count == state.last_id - since
    return quote(state.epoch) .. ',' .. text(state.last_id) .. ',' .. tostring(resumed) .. ',' .. messages
end

local function members_of(room, except)
    local list, flat = {}, call('HGETALL', key('members', room))
    for at = 1, #flat, 2 do
        local id, client = split(flat[at])
        if flat[at] ~= except then
            table.insert(list, '[' .. id .. ',' .. client .. ',' .. quote(flat[at + 1]) .. ']')
        end
    end
    return '[' .. table.concat(list, ',') .. ']'
end

local function enter(room, id, client, username)
    call('HSET', key('members', room), address(id, client), username)
    if call('HINCRBY', key('present', room), id, 1) == 1 then
        present[room] = nil
    end
    if call('ZREM', prefix .. ':empty', room) == 1 then
        for _, kind in ipairs({ 'room', 'log', 'nonces' }) do
            call('PERSIST', key(kind, room))
        end
    end
end

local function drop_history(room)
    call('DEL', key('room', room), key('log', room), key('nonces', room))
    rooms[room] = nil
end

-- Keeps the history of an empty room for a while. If there are too many, rooms without a message go first.
local function keep_empty(room)
    local score = tonumber(call('TIME')[1]) - (room_of(room).last_id == 0 and 1e11 or 0)
    call('ZADD', prefix .. ':empty', score, room)
    for _, kind in ipairs({ 'room', 'log', 'nonces' }) do
        call('PEXPIRE', key(kind, room), ttl)
    end
    while call('ZCARD', prefix .. ':empty') > max_empty do
        drop_history(call('ZPOPMIN', prefix .. ':empty')[1])
    end
end

local function exit(room, id, client)
    call('HDEL', key('members', room), address(id, client))
    if call('HINCRBY', key('present', room), id, -1) <= 0 then
        call('HDEL', key('present', room), id)
        present[room] = nil
    end
    if call('EXISTS', key('present', room)) == 0 then
        keep_empty(room)
    end
end

local function room_event(name, room, id, client, rest)
    return '{"' .. name .. '":[' .. quote(room) .. ',' .. id .. ',' .. client .. (rest or '') .. ']}'
end

local function remove(id, client, except)
    local fields = client_of(id, client)
    if not fields then
        return
    end
    local of = address(id, client)
    push_to_room(fields.room, room_event('left', fields.room, id, client), except)
    call('HDEL', key('clients', id), client)
    clients[of] = false
    release(fields, of)
    if fields.client_id ~= '' and call('HGET', prefix .. ':client_ids', fields.client_id) == of then
        call('HDEL', prefix .. ':client_ids', fields.client_id)
    end
    exit(fields.room, id, client)
end

-- Makes a client of this instance known, and the owner of its username and client id.
local function add_client(client, fields)
    save(instance, client, fields)
    claim(fields, address(instance, client))
    if fields.client_id ~= '' then
        call('HSET', prefix .. ':client_ids', fields.client_id, address(instance, client))
    end
end

-- Sends `joined` to the instance of a new member of a room, and then `arrived` to the other instances.
local function announce_member(client, from, room, username, epoch, since, again)
    if again or call('HGET', key('present', room), instance) == '1' then
        push(instance, '{"opened":[' .. quote(room) .. ',' .. members_of(room, address(instance, client)) .. ']}')
    end
    local history_fields = backlog(room, epoch, since)
    push(instance, '{"joined":[' .. client .. ',' .. (from and quote(from) or 'null') .. ',' .. quote(room) .. ','
        .. history_fields .. ']}')
    if not again then
        push_to_room(room, room_event('arrived', room, instance, client, ',' .. quote(username)), instance)
    end
end

local function reject(client, reason, detail, nonce)
    push(instance, '{"rejected":[' .. client .. ',' .. quote(reason) .. ',' .. quote(detail) .. ',' .. nonce .. ']}')
end

-- Returns whether the client may use a username. Otherwise, rejects the request.
local function authorize(client, fields, username, name_key, share, nonce)
    local holder = fields.username ~= username and holder_of(name_key, share)
    if holder and holder ~= address(instance, client) then
        reject(client, 'name', '', nonce)
        return false
    end
    return true
end

local function set_username(client, fields, username, name_key, share)
    if fields.username ~= username then
        release(fields, address(instance, client))
        fields.username, fields.key, fields.share = username, name_key, share
        claim(fields, address(instance, client))
        save(instance, client, fields)
    end
end

-- Appends a message to a room's history. Returns its id. If the history has a message with the same nonce, sends that
-- one to the client, and returns nothing.
local function append(client, room, nonce_key, payload)
    local state = room_of(room)
    local found = nonce_key ~= '' and call('HGET', key('nonces', room), nonce_key)
    local original = found and call('XRANGE', key('log', room), found, found)[1]
    if original then
        push(instance, '{"duplicate":[' .. client .. ',' .. found .. ',' .. original[2][2] .. ']}')
        return
    end
    state.last_id = state.last_id + 1
    local id = text(state.last_id)
    call('HSET', key('room', room), 'last_id', id)
    if history == 0 then
        return id
    end
    call('XADD', key('log', room), id .. '-0', 'message', payload, 'nonce', nonce_key)
    if nonce_key ~= '' then
        call('HSET', key('nonces', room), nonce_key, id)
    end
    for _ = history + 1, call('XLEN', key('log', room)) do
        local oldest = call('XRANGE', key('log', room), '-', '+', 'COUNT', 1)[1]
        call('XDEL', key('log', room), oldest[1])
        if oldest[2][4] ~= '' then
            call('HDEL', key('nonces', room), oldest[2][4])
        end
    end
    return id
end

local requests = {}

function requests.join()
    local client, room, username, name_key, share, bound = take(), take(), take(), take(), take(), take()
    local client_id, credential, session, new_session, epoch, since = take(), take(), take(), take(), take(), take()
    if client_of(instance, client) then
        -- The instance missed the event, and has sent its request again.
        announce_member(client, nil, room, username, epoch, tonumber(since), true)
        return
    end
    local older = owner_of(client_id)
    local other = older and client_of(split(older))
    if other and (other.credential ~= credential or (bound == '1' and other.username ~= username)) then
        push(instance, '{"join_rejected":' .. client .. '}')
        return
    end
    local holder = holder_of(name_key, share)
    if holder and holder ~= older and bound ~= '1' and (session == '' or client_of(split(holder)).session ~= session) then
        push(instance, '{"join_rejected":' .. client .. '}')
        return
    end
    local fields = { room = room, username = username, key = name_key, share = share, client_id = client_id,
        credential = credential, session = session ~= '' and session or new_session }
    -- Enter before the older connection leaves: if the room were empty, it could lose its history.
    enter(room, instance, client, username)
    if older then
        remove(split(older))
    end
    if holder and holder ~= older then
        remove(split(holder))
    end
    add_client(client, fields)
    announce_member(client, nil, room, username, epoch, tonumber(since))
end

function requests.leave()
    local client = take()
    if client_of(instance, client) then
        remove(instance, client)
    else
        push(instance, '{"join_rejected":' .. client .. '}') -- so that the instance forgets a join that had no effect
    end
end

function requests.switch()
    local client, room, joined_as = take(), take(), take()
    local fields = client_of(instance, client)
    if not fields or fields.room == room then
        return
    end
    local from = fields.room
    enter(room, instance, client, joined_as)
    push_to_room(from, room_event('left', from, instance, client), instance)
    fields.room = room
    save(instance, client, fields)
    exit(from, instance, client)
    announce_member(client, from, room, joined_as, '', 0)
end

function requests.publish()
    local client, username, name_key, share, nonce, nonce_key, payload =
        take(), take(), take(), take(), take(), take(), take()
    local fields = client_of(instance, client)
    if not fields or not authorize(client, fields, username, name_key, share, nonce) then
        return
    end
    local id = append(client, fields.room, nonce_key, payload)
    if not id then
        return
    end
    set_username(client, fields, username, name_key, share)
    push_to_room(fields.room, room_event('message', fields.room, instance, client, ',' .. id .. ',' .. payload))
end

-- Publishes a message of the operator, who is not a member of the room.
function requests.announce()
    local client, room, nonce_key, payload = take(), take(), take(), take()
    local id = append(client, room, nonce_key, payload)
    if not id then
        return
    end
    push_to_room(room, room_event('message', room, instance, client, ',' .. id .. ',' .. payload), instance)
    push(instance, room_event('announced', room, instance, client, ',' .. id .. ',' .. payload))
    if #instances_of(room) == 0 then
        keep_empty(room)
    end
end

requests['private'] = function()
    local client, username, name_key, share, nonce, to_key, to, payload =
        take(), take(), take(), take(), take(), take(), take(), take()
    local fields = client_of(instance, client)
    if not fields or not authorize(client, fields, username, name_key, share, nonce) then
        return
    end
    local recipients, own_address = {}, address(instance, client)
    for _, of in ipairs(call('SMEMBERS', key('user', to_key))) do
        local id, recipient = split(of)
        recipients[id] = recipients[id] or {}
        if of ~= own_address then
            table.insert(recipients[id], recipient)
        end
    end
    if next(recipients) == nil then
        reject(client, 'nobody', to, nonce)
        return
    end
    set_username(client, fields, username, name_key, share)
    recipients[instance] = recipients[instance] or {}
    table.insert(recipients[instance], client)
    for id, list in pairs(recipients) do
        local sender = id == instance and client or 'null'
        push(id, '{"private":[[' .. table.concat(list, ',') .. '],' .. payload .. ',' .. sender .. ']}')
    end
end

function requests.page()
    local client, before, limit = take(), take(), tonumber(take())
    local fields = client_of(instance, client)
    if not fields then
        return
    end
    local upper = math.min(tonumber(before), room_of(fields.room).last_id + 1)
    local messages, count, first = messages_of(fields.room, upper, 0, limit, max_bytes / 2, true)
    local more = count > 0 and #call('XRANGE', key('log', fields.room), '-', '(' .. text(first) .. '-0', 'COUNT', 1) > 0
    push(instance, '{"page":[' .. client .. ',' .. quote(fields.room) .. ',' .. before .. ',' .. tostring(more) .. ','
        .. messages .. ']}')
end

function requests.typing()
    local client, username, name_key, share = take(), take(), take(), take()
    local fields = client_of(instance, client)
    if fields and authorize(client, fields, username, name_key, share, 'null') then
        push_to_room(fields.room, room_event('typing', fields.room, instance, client, ',' .. quote(username)))
    end
end

-- Rejects a request for the instance, so that the error has its place in the order of events.
function requests.reject()
    local client, reason, nonce = take(), take(), take()
    reject(client, reason, '', nonce)
end

-- Makes a client a member again, after the instance was declared dead or Redis has lost data.
function requests.rejoin()
    local client, room, joined_as, username, name_key, share, client_id, credential, session =
        take(), take(), take(), take(), take(), take(), take(), take(), take()
    local fields = client_of(instance, client)
    if fields and fields.room == room then
        return
    end
    if fields then
        remove(instance, client, instance) -- its instance never saw the client in that room
    end
    if holder_of(name_key, share) or owner_of(client_id) then
        push(instance, room_event('left', room, instance, client))
        return
    end
    fields = { room = room, username = username, key = name_key, share = share, client_id = client_id,
        credential = credential, session = session }
    enter(room, instance, client, joined_as)
    add_client(client, fields)
    push_to_room(room, room_event('arrived', room, instance, client, ',' .. quote(joined_as)), instance)
end

-- Removes the instance and its clients, because the server stops.
function requests.close()
    for _, client in ipairs(call('HKEYS', key('clients', instance))) do
        remove(instance, client)
    end
    call('SREM', prefix .. ':instances', instance)
end

-- Removes the clients of the instance that are not in the list: they left while Redis was unavailable. An instance sends
-- this after its last `rejoin`.
function requests.retain()
    call('HDEL', record, 'rejoins')
    local list, count = {}, tonumber(take())
    for _ = 1, count do
        list[take()] = true
    end
    for _, client in ipairs(call('HKEYS', key('clients', instance))) do
        if not list[client] then
            remove(instance, client)
        end
    end
end

-- Sends the members of a room, and the messages after `since`, to an instance that may have missed events.
function requests.sync()
    local room, epoch, since = take(), take(), tonumber(take())
    local history_fields = backlog(room, epoch, since)
    push(instance, '{"synced":[' .. quote(room) .. ',' .. history_fields .. ',' .. members_of(room) .. ']}')
end

-- Removes the clients of an instance whose beat has not changed.
function requests.reap()
    local dead, beat = take(), take()
    local of = key('instance', dead)
    local fields = call('HMGET', of, 'beat', 'dead')
    if not fields[2] and (fields[1] or '') ~= beat then
        return
    end
    call('HSET', of, 'dead', '1')
    call('PEXPIRE', of, expiry)
    call('PEXPIRE', key('inbox', dead), expiry)
    local left = call('HKEYS', key('clients', dead))
    for at = 1, math.min(#left, 500) do
        remove(dead, left[at])
    end
    if #left <= 500 then
        call('SREM', prefix .. ':instances', dead)
    end
end

-- Does nothing. The event `executed` shows the instance that its inbox works.
function requests.probe()
end

while position < #ARGV do
    local number, name, count = tonumber(take()), take(), tonumber(take())
    if number > executed then
        local next_position = position + count
        local succeeded, failure = pcall(requests[name])
        if not succeeded then
            -- A bug in one request must not stop the requests of other clients.
            push(instance, '{"failed":' .. quote(name .. ': ' .. (failure.err or tostring(failure))) .. '}')
        end
        executed, position = number, next_position
    else
        position = position + count
    end
end
call('HSET', record, 'executed', text(executed))
push(instance, '{"executed":' .. text(executed) .. '}')

for to, events in pairs(outgoing) do
    local of = key('instance', to)
    if call('EXISTS', of) == 1 and prepare_inbox(of, generation) then
        local id = text(call('HINCRBY', of, 'entry', 1))
        call('XADD', key('inbox', to), 'MAXLEN', '~', 100000, id .. '-0', 'events', table.concat(events, '\n'))
    end
end

local reply = { 'done' }
if beats == '1' then
    call('HINCRBY', record, 'beat', 1)
    local now = tonumber(call('TIME')[1])
    call('ZADD', prefix .. ':seen', now, instance)
    call('ZREMRANGEBYSCORE', prefix .. ':seen', '-inf', now - 60)
    call('XTRIM', key('inbox', instance), 'MINID', text(tonumber(read) + 1))
    for _, kind in ipairs({ 'instance', 'inbox' }) do
        call('PEXPIRE', key(kind, instance), expiry)
    end
    for _, id in ipairs(call('SMEMBERS', prefix .. ':instances')) do
        table.insert(reply, id)
        table.insert(reply, call('HGET', key('instance', id), 'beat') or '')
    end
end
return reply
