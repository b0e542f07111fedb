-- The key that authenticates the messages of the gateways on this database to each other. It is not a numbered step, so
-- that gateways of older versions, which do not know it, accept the schema.
DO $$
DECLARE
    role text;
BEGIN
    IF to_regclass('cynow_relay_key') IS NULL THEN
        CREATE TABLE cynow_relay_key (
            id smallint NOT NULL PRIMARY KEY DEFAULT 1 CHECK (id = 1),
            key bytea NOT NULL CHECK (octet_length(key) >= 32),
            created_at timestamp with time zone NOT NULL DEFAULT now()
        );
        REVOKE ALL ON cynow_relay_key FROM PUBLIC;
        -- ALTER DEFAULT PRIVILEGES may have granted it to others already.
        FOR role IN
            SELECT DISTINCT grantee::regrole::text FROM pg_class, aclexplode(relacl)
            WHERE oid = 'cynow_relay_key'::regclass AND grantee NOT IN (0, relowner)
        LOOP
            EXECUTE format('REVOKE ALL ON cynow_relay_key FROM %s', role);
        END LOOP;
    END IF;
END
$$;
