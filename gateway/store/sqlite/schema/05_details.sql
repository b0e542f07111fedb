-- What the gateway knows of each commit beside Django's columns; "detail" is JSON.
CREATE TABLE commit_detail (
    commit_id integer NOT NULL PRIMARY KEY,
    undo_of integer NULL UNIQUE,
    detail text NOT NULL
);
