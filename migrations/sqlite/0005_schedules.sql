-- What makes messages at the slots of a cron. A run moves `next_at` and stores its messages in one transaction that
-- names the generation and the slot, so that each slot is run once, by whichever node comes first.
CREATE TABLE schedules (
    id            TEXT PRIMARY KEY,
    -- Random, new whenever the schedule is created or replaced.
    generation    INTEGER NOT NULL,
    cron          TEXT NOT NULL,
    -- A URL, or the name of a URL group.
    destination   TEXT NOT NULL,
    -- What its messages are made from, as in `messages`.
    method        TEXT NOT NULL,
    headers       TEXT,
    body          BLOB NOT NULL,
    body_sha256   BLOB NOT NULL,
    max_retries   INTEGER NOT NULL,
    caller_ip     TEXT,
    labels        TEXT,
    queue         TEXT,
    options       TEXT,
    delay_ms      INTEGER,
    created_at    INTEGER NOT NULL,
    paused        INTEGER NOT NULL,
    next_at       INTEGER NOT NULL,
    -- The last run: its slot, its messages' ids (comma-joined), or why it made none.
    last_slot     INTEGER,
    last_messages TEXT,
    last_error    TEXT
) STRICT;

-- The earliest slot, and what is due.
CREATE INDEX schedules_next ON schedules (next_at) WHERE NOT paused;
