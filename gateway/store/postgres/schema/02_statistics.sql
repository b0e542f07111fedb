-- Names sort by their code points, as they do everywhere else in the gateway, whatever the database's locale.
-- The distribution key of each table with a machine is the machine, and each key has it.

-- Every machine with stored data.
CREATE TABLE IF NOT EXISTS cynow_machine (
    machine text COLLATE "C" NOT NULL PRIMARY KEY
);

-- Every sensor with stored data, and its last type where that is known.
CREATE TABLE IF NOT EXISTS cynow_sensor (
    machine text COLLATE "C" NOT NULL,
    sensor text COLLATE "C" NOT NULL,
    type text NULL,
    PRIMARY KEY (machine, sensor)
);

-- Means of hours, days, months and years: "period" is one of these words. "time" is the start on the wall clock, "start"
-- in seconds since 1970, which tells an hour that comes twice from itself. "origin" is 0 for rows of the gateway, and -1
-- for those that the old monitoring server wrote. What is behind "data" is NULL where only the mean is known.
CREATE TABLE IF NOT EXISTS cynow_mean (
    machine text COLLATE "C" NOT NULL,
    sensor text COLLATE "C" NOT NULL,
    period text COLLATE "C" NOT NULL,
    time timestamp without time zone NOT NULL,
    start bigint NOT NULL,
    origin smallint NOT NULL,
    data double precision NULL,
    count bigint NULL,
    minutes bigint NULL,
    total double precision NULL,
    total_rest double precision NULL,
    magnitudes double precision NULL,
    magnitudes_rest double precision NULL,
    squares double precision NULL,
    squares_rest double precision NULL,
    min double precision NULL,
    min_time timestamp without time zone NULL,
    max double precision NULL,
    max_time timestamp without time zone NULL,
    raw_end bigint NULL,
    PRIMARY KEY (machine, sensor, period, start, origin)
);
CREATE INDEX IF NOT EXISTS cynow_mean_time ON cynow_mean (machine, period, sensor, time, start, origin);

-- Anomalies; "time" as the wall clock showed it. "gateway" and "entry" say who wrote a row, and as its which.
CREATE TABLE IF NOT EXISTS cynow_anomaly (
    machine text COLLATE "C" NOT NULL,
    time timestamp without time zone NOT NULL,
    gateway text COLLATE "C" NOT NULL,
    entry bigint NOT NULL,
    threshold double precision NOT NULL,
    score double precision NOT NULL,
    PRIMARY KEY (machine, time, gateway, entry)
);
CREATE INDEX IF NOT EXISTS cynow_anomaly_newest ON cynow_anomaly (time DESC, machine, gateway, entry);

-- Up to which entry of its spool a gateway's are in these tables: moved on in the transaction that writes them.
CREATE TABLE IF NOT EXISTS cynow_applied (
    gateway text NOT NULL,
    spool text NOT NULL,
    entry bigint NOT NULL,
    PRIMARY KEY (gateway, spool)
);
