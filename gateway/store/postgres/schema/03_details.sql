-- What the gateways know of each commit beside Django's columns; "request" is unique for ever, so that a commit that
-- waited as a ticket is written once. "commit_id" is not: a table that was emptied may count from 1 again.
CREATE TABLE IF NOT EXISTS cynow_commit (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    request text COLLATE "C" NOT NULL UNIQUE,
    gateway text NOT NULL,
    ticket text COLLATE "C" NULL UNIQUE,
    commit_id bigint NOT NULL,
    undo_of bigint NULL UNIQUE,
    detail text NOT NULL
);
CREATE INDEX IF NOT EXISTS cynow_commit_commit_id ON cynow_commit (commit_id);
CREATE INDEX IF NOT EXISTS cynow_commit_gateway ON cynow_commit (gateway, number);
