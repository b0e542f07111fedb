-- The record: gapless numbers, canonical JSON, and SHA-256 over the previous hash and the content. Only ever appended to.
CREATE TABLE record (number INTEGER PRIMARY KEY, content BLOB NOT NULL, hash BLOB NOT NULL);

-- Numbers of entries by "commit:<id>", "ticket:<ticket>" and "request:<request>"; the record itself does not need it.
CREATE TABLE record_key (key text NOT NULL PRIMARY KEY, number integer NOT NULL) WITHOUT ROWID;

-- The last head that each other gateway has sent.
CREATE TABLE foreign_head (
    gateway text NOT NULL PRIMARY KEY,
    number integer NOT NULL,
    hash text NOT NULL,
    time text NOT NULL
) WITHOUT ROWID;

-- Positions up to which other tables were compared with the record.
CREATE TABLE record_mark (name text NOT NULL PRIMARY KEY, value integer NOT NULL) WITHOUT ROWID;
