-- One row: tells this file from one in its place.
CREATE TABLE store (identity text NOT NULL);
INSERT INTO store (identity) VALUES (lower(hex(randomblob(16))));
