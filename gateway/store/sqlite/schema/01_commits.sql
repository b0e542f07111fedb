-- As the Django project's migration makes it on SQLite. Times are UTC, "2025-12-18 01:11:12.000000", as Django keeps them there.
CREATE TABLE scale_weight_log (
    id integer NOT NULL PRIMARY KEY AUTOINCREMENT,
    scale_id varchar(50) NOT NULL,
    cylinder_no varchar(50) NOT NULL,
    event_type varchar(10) NOT NULL,
    gross_kg decimal NOT NULL,
    raw_line text NOT NULL,
    received_at datetime NOT NULL,
    committed_at datetime NOT NULL,
    arrival_shipping_no varchar(50) NULL,
    move_report_no varchar(50) NULL
);
CREATE INDEX scale_weight_log_cylinder_no ON scale_weight_log (cylinder_no);
CREATE INDEX scale_weight_log_arrival_shipping_no ON scale_weight_log (arrival_shipping_no);
CREATE INDEX scale_weight_log_move_report_no ON scale_weight_log (move_report_no);
CREATE INDEX scale_weight_log_cylinder_committed ON scale_weight_log (cylinder_no, committed_at DESC);
CREATE INDEX scale_weight_log_event_committed ON scale_weight_log (event_type, committed_at DESC);

-- The first answer to each Idempotency-Key; "made_at" in seconds since 1970.
CREATE TABLE idempotency (
    key text NOT NULL PRIMARY KEY,
    fingerprint text NOT NULL,
    answer text NOT NULL,
    made_at real NOT NULL
) WITHOUT ROWID;
CREATE INDEX idempotency_made_at ON idempotency (made_at);

-- No live event was ever given a number above this one.
CREATE TABLE event_seq (reserved integer NOT NULL);
INSERT INTO event_seq (reserved) VALUES (0);
