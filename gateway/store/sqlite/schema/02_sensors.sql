-- The last type of each sensor: no raw file tells it, and statistics are made again from raw files after a kill.
CREATE TABLE sensor (
    machine text NOT NULL,
    sensor text NOT NULL,
    type text NOT NULL,
    PRIMARY KEY (machine, sensor)
) WITHOUT ROWID;
