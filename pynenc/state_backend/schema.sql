-- The schema, version 4. A row per batch, not per invocation: what a million calls have in common is written once.
-- An invocation's number is batch << 10 | index, so the rows of one batch lie side by side in every table.

CREATE TABLE clients (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,  -- never given twice: batch ids count up from it
    pid       INTEGER NOT NULL,
    connected REAL    NOT NULL
);

-- A task as one client declared it: its options, and where it is imported from.
CREATE TABLE tasks (
    id      INTEGER PRIMARY KEY,
    task_id TEXT NOT NULL,
    options TEXT NOT NULL,   -- JSON
    context TEXT NOT NULL,   -- JSON: the client's sys.path, its working directory, the file of the task's module
    UNIQUE (task_id, options, context)
);

CREATE TABLE batches (
    id         INTEGER PRIMARY KEY,
    task       INTEGER NOT NULL REFERENCES tasks,
    count      INTEGER NOT NULL CHECK (count BETWEEN 1 AND 1024),
    group_id   INTEGER NOT NULL,  -- the first batch of the group, 0 for single calls
    parent     INTEGER NOT NULL,  -- the invocation that made the calls, 0 for none
    registered REAL    NOT NULL,
    packing    INTEGER NOT NULL CHECK (packing BETWEEN 0 AND 2),
    arguments  BLOB    NOT NULL,
    extras     BLOB    NOT NULL   -- keys, dependencies, common arguments (protocol/extras.py); mostly empty
);

-- Which calls may answer others of the same key; whether they have a result is looked up.
CREATE TABLE cache_keys (
    key BLOB    NOT NULL,
    id  INTEGER NOT NULL,  -- the invocation
    PRIMARY KEY (key, id)
) WITHOUT ROWID;

-- A name for a group of one task; `id` is its first batch.
CREATE TABLE named_groups (
    task_id TEXT    NOT NULL,
    name    TEXT    NOT NULL,
    id      INTEGER NOT NULL,
    PRIMARY KEY (task_id, name)
) WITHOUT ROWID;

CREATE TABLE named_batches (
    group_id INTEGER NOT NULL,
    batch    INTEGER NOT NULL,
    PRIMARY KEY (group_id, batch)
) WITHOUT ROWID;

-- Arguments that all calls of a group share.
CREATE TABLE common_arguments (
    id      INTEGER PRIMARY KEY,
    payload BLOB NOT NULL
);

-- The calls [first, stop) of one batch that succeeded on one worker, in one stretch.
CREATE TABLE results (
    id        INTEGER PRIMARY KEY,  -- the number of the first invocation
    stop      INTEGER NOT NULL,
    worker    INTEGER NOT NULL,
    packing   INTEGER NOT NULL CHECK (packing BETWEEN 0 AND 2),
    started   REAL    NOT NULL,     -- of the first call, seconds since the epoch
    took      REAL    NOT NULL,     -- seconds, all together
    ends      BLOB    NOT NULL,     -- a double per call, monotonic seconds; the last one is started + took; empty: evenly spread
    payload   BLOB    NOT NULL
);

-- Which blobs (large buffers beside the database) unfinished calls and results refer to; see pynenc/blobs.
CREATE TABLE blobs (
    kind INTEGER NOT NULL CHECK (kind BETWEEN 0 AND 1),  -- 0: arguments of an unfinished batch; 1: results
    id   INTEGER NOT NULL,  -- the batch; the number of the first invocation of the results
    name BLOB    NOT NULL,
    size INTEGER NOT NULL,
    PRIMARY KEY (kind, id, name)
) WITHOUT ROWID;

-- What became of the calls [first, stop) of one batch on the way to their outcome: they waited, went on, were run again.
CREATE TABLE transitions (
    id     INTEGER NOT NULL,  -- the number of the first invocation
    stop   INTEGER NOT NULL,
    status TEXT    NOT NULL,
    worker INTEGER NOT NULL,
    time   REAL    NOT NULL,
    PRIMARY KEY (id, time, status)
) WITHOUT ROWID;

-- An attempt that raised, or the calls [first, stop) of one batch that the supervisor ended.
CREATE TABLE failures (
    id        INTEGER NOT NULL,  -- the number of the first invocation
    stop      INTEGER NOT NULL,
    worker    INTEGER NOT NULL,
    attempt   INTEGER NOT NULL,  -- how many there were before
    ending    INTEGER NOT NULL CHECK (ending BETWEEN 0 AND 4),  -- 0: tried again; 1: failed; 2: cancelled; 3: killed; 4: not run because of others
    started   REAL    NOT NULL,
    ended     REAL    NOT NULL CHECK (ended >= 0),
    type_name TEXT    NOT NULL,
    message   TEXT    NOT NULL,
    traceback TEXT    NOT NULL,
    exception BLOB    NOT NULL,     -- pickled; empty when the supervisor says so
    PRIMARY KEY (id, attempt)
);

-- Batches that are not finished and that nobody is to run before somebody asks for it: they were stopped on purpose.
CREATE TABLE shelved (
    batch INTEGER PRIMARY KEY
);

-- One row. Every batch that is not finished is shelved, or its client has a higher number than this.
CREATE TABLE settled (
    client INTEGER NOT NULL
);
INSERT INTO settled VALUES (0);
