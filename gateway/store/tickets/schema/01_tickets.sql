-- Commits that wait for the server, or did; AUTOINCREMENT gives no number twice. "made_at" and "ended_at" are seconds
-- since 1970; "answer" is the answer that the client got. "key" is that of the client.
CREATE TABLE ticket (
    n integer NOT NULL PRIMARY KEY AUTOINCREMENT,
    request text NOT NULL UNIQUE,
    key text NULL UNIQUE,
    fingerprint text NOT NULL,
    entry text NOT NULL,
    answer text NOT NULL,
    made_at real NOT NULL,
    state text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'written', 'rejected')),
    ended_at real NULL,
    commit_id integer NULL,
    reason text NULL
);
CREATE INDEX ticket_state ON ticket (state, n);
CREATE INDEX ticket_written ON ticket (ended_at) WHERE state = 'written';
