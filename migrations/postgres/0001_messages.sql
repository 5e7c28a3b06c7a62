-- Messages are written once, and their ids begin with the time of acceptance: the primary key is their order in time.
-- What changes while one waits is in `deliveries`; what happened to it is in `attempts`.
-- Ids and names are COLLATE "C", so that their order is byte order, as it is in SQLite.
CREATE TABLE messages (
    id           TEXT COLLATE "C" PRIMARY KEY,
    created_at   BIGINT NOT NULL,
    due_at       BIGINT NOT NULL,
    method       TEXT NOT NULL,
    url          TEXT NOT NULL,
    -- JSON [[name, value], ...] in the order of sending; NULL for none.
    headers      TEXT,
    body         BYTEA NOT NULL,
    body_sha256  BYTEA NOT NULL,
    max_retries  BIGINT NOT NULL,
    caller_ip    TEXT,
    -- Comma-joined, as published.
    labels       TEXT,
    queue        TEXT COLLATE "C",
    url_group    TEXT COLLATE "C",
    endpoint     TEXT,
    schedule_id  TEXT COLLATE "C",
    flow_key     TEXT COLLATE "C",
    -- The message whose outcome made this one (callbacks).
    source_id    TEXT COLLATE "C",
    -- JSON of the rarely set options; NULL when all have their defaults.
    options      TEXT
);

-- The scheduling state of unfinished messages: the hot table. A row goes when its message is finished, so the table's
-- size is the backlog.
CREATE TABLE deliveries (
    message_id          TEXT COLLATE "C" PRIMARY KEY,
    -- What limits it: the destination's origin, for a message in no queue and under no flow-control key.
    lane                TEXT COLLATE "C" NOT NULL,
    due_at              BIGINT NOT NULL,
    -- Bytes that the message takes in memory.
    size                BIGINT NOT NULL,
    -- Attempts made.
    retried             BIGINT NOT NULL,
    -- Leases taken for the attempt to come that ended without an outcome, the present one included.
    claims              BIGINT NOT NULL,
    -- The lease: the node's incarnation (0: nobody's) and its claim number.
    node                BIGINT NOT NULL,
    lease               BIGINT NOT NULL,
    cancel_requested_at BIGINT,
    -- Starts of that attempt, counted once the claims are many: a message that ends its nodes stops after some.
    starts              BIGINT NOT NULL DEFAULT 0
) WITH (
    fillfactor = 70,
    -- The table turns over completely all the time; waiting for a share of it to be dead would let it bloat.
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0.5,
    autovacuum_analyze_threshold = 10000
);

-- Both are partial: a message that is due at once is inserted leased and never enters them.
-- The earliest due time, and which lanes have something due:
CREATE INDEX deliveries_due ON deliveries (due_at) WHERE node = 0;
-- The claim, lane by lane. The id makes its order one that only this index has:
CREATE INDEX deliveries_claim ON deliveries (lane, due_at, message_id) WHERE node = 0;

-- One row per attempt that has ended; append-only. The log's entries are derived from it at read time.
CREATE TABLE attempts (
    message_id       TEXT COLLATE "C" NOT NULL,
    retried          BIGINT NOT NULL,
    started_at       BIGINT NOT NULL,
    ended_at         BIGINT NOT NULL,
    -- The state it left: delivered, retry, failed, cancelled.
    result           TEXT NOT NULL,
    -- The destination's status; 0 without a complete response.
    status           BIGINT NOT NULL,
    -- Set unless delivered.
    error            TEXT,
    -- When the next attempt is due, for retry.
    next_due_at      BIGINT,
    response_headers TEXT,
    response_body    BYTEA,
    PRIMARY KEY (message_id, retried)
);
CREATE INDEX attempts_started ON attempts (started_at);
CREATE INDEX attempts_ended ON attempts (ended_at);

CREATE TABLE cancellations (
    message_id   TEXT COLLATE "C" PRIMARY KEY,
    requested_at BIGINT NOT NULL,
    -- When it took effect; NULL while an attempt is in flight, or when that one delivered the message.
    cancelled_at BIGINT
);
CREATE INDEX cancellations_requested ON cancellations (requested_at);

CREATE TABLE dead_letters (
    id               TEXT COLLATE "C" PRIMARY KEY,
    message_id       TEXT COLLATE "C" NOT NULL,
    created_at       BIGINT NOT NULL,
    status           BIGINT NOT NULL,
    error            TEXT,
    response_headers TEXT,
    response_body    BYTEA
);
CREATE INDEX dead_letters_created ON dead_letters (created_at, id);
CREATE INDEX dead_letters_message ON dead_letters (message_id);

-- The first message of each deduplication key, until the window ends.
CREATE TABLE deduplications (
    key        TEXT COLLATE "C" PRIMARY KEY,
    message_id TEXT COLLATE "C" NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX deduplications_expiry ON deduplications (expires_at);
