-- Durable workflows. A row of `runs` is one execution: its instance is the id of the message that began it. Whoever appends
-- an entry or ends the run holds the row, which gives the entries of a run one order.
CREATE TABLE runs (
    instance           TEXT COLLATE "C" PRIMARY KEY,
    -- Users' name for it, which may come again once the run has ended.
    run_id             TEXT COLLATE "C" NOT NULL,
    created_at         BIGINT NOT NULL,
    url                TEXT NOT NULL,
    -- RUN_STARTED, RUN_SUCCESS, RUN_FAILED or RUN_CANCELED.
    state              TEXT NOT NULL,
    completed_at       BIGINT,
    labels             TEXT,
    flow_key           TEXT COLLATE "C",
    caller_ip          TEXT,
    -- What the trigger says of the whole run: headers, retries, feature words, options as in `messages`.
    headers            TEXT,
    max_retries        BIGINT NOT NULL,
    features           TEXT NOT NULL,
    options            TEXT,
    -- The run that waits for this one, and the number of the step that does; the rest of it is JSON.
    invoker_instance   TEXT COLLATE "C",
    invoker_step       BIGINT,
    invoker            TEXT,
    result             BYTEA,
    dead_letter        TEXT COLLATE "C",
    next_position      BIGINT NOT NULL,
    -- The message that tells of the failure, and what came of it: done, nobody, failed or cancelled; NULL while it is under
    -- way.
    failure_message    TEXT COLLATE "C",
    failure_told       TEXT
);
CREATE UNIQUE INDEX runs_live ON runs (run_id) WHERE state = 'RUN_STARTED';
CREATE INDEX runs_id ON runs (run_id, created_at);
CREATE INDEX runs_created ON runs (created_at, instance);
CREATE INDEX runs_completed ON runs (completed_at) WHERE completed_at IS NOT NULL;
CREATE UNIQUE INDEX runs_invoker ON runs (invoker_instance, invoker_step) WHERE invoker_instance IS NOT NULL;

-- The log of a run; append-only.
CREATE TABLE run_entries (
    instance   TEXT COLLATE "C" NOT NULL,
    position   BIGINT NOT NULL,
    -- The message that was accepted with it.
    message_id TEXT COLLATE "C" NOT NULL,
    call_type  TEXT NOT NULL,
    -- By this a repeated submission is recognised.
    step_key   TEXT COLLATE "C",
    body       BYTEA NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (instance, position)
);
CREATE UNIQUE INDEX run_entries_key ON run_entries (instance, step_key) WHERE step_key IS NOT NULL;

-- Runs that wait for events. The timer is a message, whose due time is the deadline.
CREATE TABLE waiters (
    instance        TEXT COLLATE "C" NOT NULL,
    step_key        TEXT COLLATE "C" NOT NULL,
    event_id        TEXT COLLATE "C" NOT NULL,
    step            TEXT NOT NULL,
    url             TEXT NOT NULL,
    headers         TEXT,
    timeout         TEXT NOT NULL,
    deadline        BIGINT NOT NULL,
    timeout_url     TEXT NOT NULL,
    timeout_headers TEXT NOT NULL,
    timer           TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (instance, step_key)
);
CREATE INDEX waiters_event ON waiters (event_id);

-- Events that came for a run before it waited for them.
CREATE TABLE kept_events (
    instance TEXT COLLATE "C" NOT NULL,
    event_id TEXT COLLATE "C" NOT NULL,
    number   BIGINT NOT NULL,
    data     BYTEA NOT NULL,
    PRIMARY KEY (instance, event_id, number)
);

-- A message's part in a run: step, call, call_result, failure_callback or timeout.
ALTER TABLE messages ADD COLUMN run TEXT COLLATE "C";
ALTER TABLE messages ADD COLUMN kind TEXT;
CREATE INDEX messages_run ON messages (run, id) WHERE run IS NOT NULL;

-- What belongs to a run, which drops it when it ends; what tells of its failure is made after that.
ALTER TABLE deliveries ADD COLUMN run TEXT COLLATE "C";
CREATE INDEX deliveries_run ON deliveries (run) WHERE run IS NOT NULL;

-- The run that it has ended. As long as there is one, the run is kept.
ALTER TABLE dead_letters ADD COLUMN run TEXT COLLATE "C";
CREATE INDEX dead_letters_run ON dead_letters (run) WHERE run IS NOT NULL;
