-- Both indices of what waits served the looks that go from lane to lane, and where this one was the smaller it was chosen,
-- to be read from end to end. Now it serves only those that say what it says of the due time, which is never negative.
DROP INDEX deliveries_due;
CREATE INDEX deliveries_due ON deliveries (due_at) WHERE node = 0 AND gate IS NULL AND due_at >= 0;

-- With a large backlog a vacuum reads large indices; a tenth of the table may be dead before the next one.
ALTER TABLE deliveries SET (autovacuum_vacuum_scale_factor = 0.1);
