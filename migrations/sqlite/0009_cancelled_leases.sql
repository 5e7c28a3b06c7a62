-- What a node holds and a user has cancelled, for which it looks every few seconds. Few rows are ever in it.
CREATE INDEX deliveries_cancelled ON deliveries (node) WHERE cancel_requested_at IS NOT NULL;
