-- One row per running server process. Leases name its incarnation; when the heartbeat is stale, others take them over.
CREATE TABLE nodes (
    incarnation  BIGINT PRIMARY KEY,
    name         TEXT NOT NULL,
    started_at   BIGINT NOT NULL,
    heartbeat_at BIGINT NOT NULL
);

-- One row (id 1): the pair that signs deliveries.
CREATE TABLE signing_keys (
    id          BIGINT PRIMARY KEY,
    current_key TEXT NOT NULL,
    next_key    TEXT NOT NULL,
    rotated_at  BIGINT NOT NULL,
    -- SHA-256 of the configured pair that these come from, perhaps by rotation; NULL for generated ones.
    configured  BYTEA
);

-- Generated API tokens: only their SHA-256.
CREATE TABLE tokens (
    sha256     BYTEA PRIMARY KEY,
    created_at BIGINT NOT NULL
);
