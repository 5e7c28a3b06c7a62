-- One row per URL group, whose endpoints are read and changed together.
CREATE TABLE url_groups (
    name       TEXT PRIMARY KEY,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    -- JSON [[name, value], ...]: for messages to the group that have no such headers; NULL for none.
    headers    TEXT,
    -- JSON [[url, name or null], ...] in the order of their coming; never empty.
    endpoints  TEXT NOT NULL
) STRICT;
