-- The hot table's end is full again in a moment. Giving it back to the file system takes a lock that holds up everybody.
ALTER TABLE deliveries SET (vacuum_truncate = off);
