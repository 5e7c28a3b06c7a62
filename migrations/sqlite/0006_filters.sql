-- For the log. Most attempts are delivered at once and in neither of these.
CREATE INDEX attempts_undelivered ON attempts (ended_at) WHERE result <> 'delivered';
CREATE INDEX cancellations_cancelled ON cancellations (cancelled_at) WHERE cancelled_at IS NOT NULL;

-- Messages that nodes have reserved on a day (since the Unix epoch), where the operator limits them. Days that are over
-- are removed.
CREATE TABLE reserved_messages (
    day      INTEGER PRIMARY KEY,
    reserved INTEGER NOT NULL
) STRICT;
