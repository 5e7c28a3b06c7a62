-- The index of due times is for those who ask for due times alone; see the same migration for Postgres.
DROP INDEX deliveries_due;
CREATE INDEX deliveries_due ON deliveries (due_at) WHERE node = 0 AND gate IS NULL AND due_at >= 0;
