-- Large bodies take half the time with LZ4 than with Postgres' own compression. Servers that don't have it (it is a
-- choice of their build) keep theirs.
DO $$
BEGIN
    ALTER TABLE messages ALTER COLUMN body SET COMPRESSION lz4;
    ALTER TABLE attempts ALTER COLUMN response_body SET COMPRESSION lz4;
    ALTER TABLE dead_letters ALTER COLUMN response_body SET COMPRESSION lz4;
EXCEPTION
    WHEN feature_not_supported THEN NULL;
END
$$;
