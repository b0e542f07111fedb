-- What waits for the server, oldest first; no number comes twice. "cost" is what the entry takes of the bound, in bytes.
CREATE TABLE entry (
    number integer NOT NULL PRIMARY KEY AUTOINCREMENT,
    form integer NOT NULL,
    kind text NOT NULL,
    machine text NOT NULL,
    sensor text NULL,
    cost integer NOT NULL,
    body text NOT NULL
);

-- Every sensor that was ever written, and its last type.
CREATE TABLE sensor (
    machine text NOT NULL,
    sensor text NOT NULL,
    type text NULL,
    PRIMARY KEY (machine, sensor)
) WITHOUT ROWID;

-- How much of a sensor's day is counted; "last" in seconds since 1970.
CREATE TABLE mark (
    machine text NOT NULL,
    sensor text NOT NULL,
    day text NOT NULL,
    last integer NOT NULL,
    raw_end integer NULL,
    PRIMARY KEY (machine, sensor, day)
) WITHOUT ROWID;

-- Days, months and years that have hours, by their first days; "closed" where they have rows of their own.
CREATE TABLE period (
    machine text NOT NULL,
    sensor text NOT NULL,
    period text NOT NULL,
    start text NOT NULL,
    closed integer NOT NULL,
    PRIMARY KEY (machine, sensor, period, start)
) WITHOUT ROWID;

-- One row. No live event was ever given a number above "reserved"; "identity" tells this file from one in its place.
CREATE TABLE state (
    identity text NOT NULL,
    reserved integer NOT NULL,
    adopted integer NOT NULL
);
INSERT INTO state (identity, reserved, adopted) VALUES (lower(hex(randomblob(16))), 0, 0);
