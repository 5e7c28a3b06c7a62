-- Messages are written once, and their ids begin with the time of acceptance: the primary key is their order in time.
-- What changes while one waits is in `deliveries`; what happened to it is in `attempts`.
CREATE TABLE messages (
    id           TEXT PRIMARY KEY,
    created_at   INTEGER NOT NULL,
    due_at       INTEGER NOT NULL,
    method       TEXT NOT NULL,
    url          TEXT NOT NULL,
    -- JSON [[name, value], ...] in the order of sending; NULL for none.
    headers      TEXT,
    body         BLOB NOT NULL,
    body_sha256  BLOB NOT NULL,
    max_retries  INTEGER NOT NULL,
    caller_ip    TEXT,
    -- Comma-joined, as published.
    labels       TEXT,
    queue        TEXT,
    url_group    TEXT,
    endpoint     TEXT,
    schedule_id  TEXT,
    flow_key     TEXT,
    -- The message whose outcome made this one (callbacks).
    source_id    TEXT,
    -- JSON of the rarely set options; NULL when all have their defaults.
    options      TEXT
) STRICT;

-- The scheduling state of unfinished messages: the hot table. A row goes when its message is finished, so the table's
-- size is the backlog.
CREATE TABLE deliveries (
    message_id          TEXT PRIMARY KEY,
    -- What limits it: the destination's origin, for a message in no queue and under no flow-control key.
    lane                TEXT NOT NULL,
    due_at              INTEGER NOT NULL,
    -- Bytes that the message takes in memory.
    size                INTEGER NOT NULL,
    -- Attempts made.
    retried             INTEGER NOT NULL,
    -- Leases taken for the attempt to come that ended without an outcome, the present one included.
    claims              INTEGER NOT NULL,
    -- The lease: the node's incarnation (0: nobody's) and its claim number.
    node                INTEGER NOT NULL,
    lease               INTEGER NOT NULL,
    cancel_requested_at INTEGER,
    -- Starts of that attempt, counted once the claims are many: a message that ends its nodes stops after some.
    starts              INTEGER NOT NULL DEFAULT 0
) STRICT;

-- Both are partial: a message that is due at once is inserted leased and never enters them.
-- The earliest due time, and which lanes have something due:
CREATE INDEX deliveries_due ON deliveries (due_at) WHERE node = 0;
-- The claim, lane by lane. The id makes its order one that only this index has:
CREATE INDEX deliveries_claim ON deliveries (lane, due_at, message_id) WHERE node = 0;

-- One row per attempt that has ended; append-only. The log's entries are derived from it at read time.
CREATE TABLE attempts (
    message_id       TEXT NOT NULL,
    retried          INTEGER NOT NULL,
    started_at       INTEGER NOT NULL,
    ended_at         INTEGER NOT NULL,
    -- The state it left: delivered, retry, failed, cancelled.
    result           TEXT NOT NULL,
    -- The destination's status; 0 without a complete response.
    status           INTEGER NOT NULL,
    -- Set unless delivered.
    error            TEXT,
    -- When the next attempt is due, for retry.
    next_due_at      INTEGER,
    response_headers TEXT,
    response_body    BLOB,
    PRIMARY KEY (message_id, retried)
) STRICT;
CREATE INDEX attempts_started ON attempts (started_at);
CREATE INDEX attempts_ended ON attempts (ended_at);

CREATE TABLE cancellations (
    message_id   TEXT PRIMARY KEY,
    requested_at INTEGER NOT NULL,
    -- When it took effect; NULL while an attempt is in flight, or when that one delivered the message.
    cancelled_at INTEGER
) STRICT;
CREATE INDEX cancellations_requested ON cancellations (requested_at);

CREATE TABLE dead_letters (
    id               TEXT PRIMARY KEY,
    message_id       TEXT NOT NULL,
    created_at       INTEGER NOT NULL,
    status           INTEGER NOT NULL,
    error            TEXT,
    response_headers TEXT,
    response_body    BLOB
) STRICT;
CREATE INDEX dead_letters_created ON dead_letters (created_at, id);
CREATE INDEX dead_letters_message ON dead_letters (message_id);

-- The first message of each deduplication key, until the window ends.
CREATE TABLE deduplications (
    key        TEXT PRIMARY KEY,
    message_id TEXT NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;
CREATE INDEX deduplications_expiry ON deduplications (expires_at);
