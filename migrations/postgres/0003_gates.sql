-- What lets limited deliveries through: a row for each queue ("q:" and its name) and each flow-control key ("f:" and the
-- key). In use is what rows of `deliveries` say, so that nothing has to be given back after a crash.
CREATE TABLE gates (
    name               TEXT COLLATE "C" PRIMARY KEY,
    created_at         BIGINT NOT NULL,
    -- When its settings changed.
    updated_at         BIGINT NOT NULL,
    -- When something last went through.
    used_at            BIGINT NOT NULL,
    -- NULL: no limit. A queue has one.
    parallelism        BIGINT,
    -- Starts in a period of so many seconds; both or neither. A queue has neither.
    rate               BIGINT,
    period_s           BIGINT,
    paused             BOOLEAN NOT NULL,
    pinned_parallelism BOOLEAN NOT NULL,
    pinned_rate        BOOLEAN NOT NULL,
    -- Grows with every claim and every change of the settings: what was decided by an older one doesn't take effect.
    version            BIGINT NOT NULL,
    -- The starts that a rate still counts: JSON [[first, last, count], ...]; NULL for none.
    starts             TEXT,
    -- When to look for something that may go; NULL: when something happens.
    next_at            BIGINT
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

CREATE INDEX gates_next ON gates (next_at) WHERE next_at IS NOT NULL;

-- The last place in each queue. A row of its own, since whoever is accepting holds it until its commit, so that the
-- order of places is the order of commits; claims must not wait for that.
CREATE TABLE queue_places (
    gate  TEXT COLLATE "C" PRIMARY KEY,
    place BIGINT NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

ALTER TABLE deliveries
    -- Where it waits; NULL: nothing but its lane limits it.
    ADD COLUMN gate   TEXT COLLATE "C",
    -- Its flow-control key's gate, which may be the same.
    ADD COLUMN flow   TEXT COLLATE "C",
    -- Its order at the gate, in Unix microseconds.
    ADD COLUMN place  BIGINT,
    -- The queue's gate whose slot it has, and the message that the slot is for: itself, or a callback's source.
    ADD COLUMN slot   TEXT COLLATE "C",
    ADD COLUMN holder TEXT COLLATE "C";

-- Those that wait at gates are none of the plain claim's business.
DROP INDEX deliveries_due;
DROP INDEX deliveries_claim;
CREATE INDEX deliveries_due ON deliveries (due_at) WHERE node = 0 AND gate IS NULL;
CREATE INDEX deliveries_claim ON deliveries (lane, due_at, message_id) WHERE node = 0 AND gate IS NULL;
-- What waits at a gate, in its order:
CREATE INDEX deliveries_gate ON deliveries (gate, place, message_id) WHERE node = 0 AND gate IS NOT NULL;
-- Attempts in flight under a key:
CREATE INDEX deliveries_flow ON deliveries (flow, node) WHERE flow IS NOT NULL;
-- Slots in use:
CREATE INDEX deliveries_slot ON deliveries (slot, holder) WHERE slot IS NOT NULL;
