-- The running server process: one, since the file is locked. Leases name its incarnation.
CREATE TABLE nodes (
    incarnation  INTEGER PRIMARY KEY,
    name         TEXT NOT NULL,
    started_at   INTEGER NOT NULL,
    heartbeat_at INTEGER NOT NULL
) STRICT;

-- One row (id 1): the pair that signs deliveries.
CREATE TABLE signing_keys (
    id          INTEGER PRIMARY KEY,
    current_key TEXT NOT NULL,
    next_key    TEXT NOT NULL,
    rotated_at  INTEGER NOT NULL,
    -- SHA-256 of the configured pair that these come from, perhaps by rotation; NULL for generated ones.
    configured  BLOB
) STRICT;

-- Generated API tokens: only their SHA-256.
CREATE TABLE tokens (
    sha256     BLOB PRIMARY KEY,
    created_at INTEGER NOT NULL
) STRICT;
