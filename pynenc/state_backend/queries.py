"""Every statement that pynenc sends to SQLite, by name."""

from __future__ import annotations

ADD_CLIENT = "INSERT INTO clients (id, pid, connected) VALUES (?, ?, ?)"
LAST_CLIENT = "SELECT seq FROM sqlite_sequence WHERE name = 'clients'"
ADD_TASK = "INSERT INTO tasks VALUES (?, ?, ?, ?)"
LAST_TASK = "SELECT MAX(id) FROM tasks"
TASK_NUMBER = "SELECT id FROM tasks WHERE task_id = ? AND options = ? AND context = ?"
ADD_BATCH = "INSERT OR IGNORE INTO batches VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
ADD_RESULTS = "INSERT OR IGNORE INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
ADD_FAILURE = "INSERT OR IGNORE INTO failures VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
ADD_TRANSITION = "INSERT OR IGNORE INTO transitions VALUES (?, ?, ?, ?, ?)"

BATCH = (
    "SELECT task_id, count, group_id, parent, registered, packing, arguments, extras "
    "FROM batches JOIN tasks ON tasks.id = batches.task WHERE batches.id = ?"
)
WHOLE_BATCH = "SELECT * FROM batches WHERE id = ?"
TASK = "SELECT task_id, options, context FROM tasks WHERE id = ?"
RETRIES_OF_BATCH = "SELECT id, COUNT(*) FROM failures WHERE id BETWEEN ? AND ? AND ending = 0 GROUP BY id"
ARGUMENTS = "SELECT arguments FROM batches WHERE id = ?"
RESULTS_OF_BATCH = "SELECT * FROM results WHERE id BETWEEN ? AND ? ORDER BY id"
FAILURES_OF_BATCH = "SELECT * FROM failures WHERE id BETWEEN ? AND ? AND ending > 0 ORDER BY id"
RESULTS_AT = "SELECT * FROM results WHERE id = ?"
FAILURE_AT = "SELECT * FROM failures WHERE id = ? AND ending > 0"
ATTEMPTS = "SELECT * FROM failures WHERE id BETWEEN ? AND ? AND ? < stop ORDER BY id, attempt"
TRANSITIONS = "SELECT status, time, worker FROM transitions WHERE id BETWEEN ? AND ? AND ? < stop ORDER BY time"
COUNT_RETRIES = "SELECT COUNT(*) FROM failures WHERE id = ? AND ending = 0"
COUNTS_BY_TASK = (
    "SELECT task_id, SUM(count), SUM(succeeded), SUM(failed) FROM ("
    " SELECT tasks.task_id, batches.count,"
    "  (SELECT COALESCE(SUM(stop - (id & 1023)), 0) FROM results"
    "   WHERE id BETWEEN batches.id << 10 AND (batches.id << 10) + 1023) AS succeeded,"
    "  (SELECT COALESCE(SUM(stop - (id & 1023)), 0) FROM failures"
    "   WHERE ending > 0 AND id BETWEEN batches.id << 10 AND (batches.id << 10) + 1023) AS failed"
    " FROM batches JOIN tasks ON tasks.id = batches.task"
    ") GROUP BY task_id ORDER BY task_id"
)
ADD_CACHE_KEY = "INSERT OR IGNORE INTO cache_keys VALUES (?, ?)"
CACHED = (
    "SELECT id FROM cache_keys WHERE key = ? AND EXISTS ("
    " SELECT 1 FROM results WHERE results.id BETWEEN (cache_keys.id >> 10) << 10 AND cache_keys.id"
    "  AND (cache_keys.id & 1023) < results.stop"
    ") ORDER BY id DESC LIMIT 1"
)
ADD_NAMED_BATCH = "INSERT OR IGNORE INTO named_batches VALUES (?, ?)"
NAMED_BATCHES = "SELECT batch FROM named_batches WHERE group_id = ? ORDER BY batch"
NAME_GROUP = "INSERT OR IGNORE INTO named_groups VALUES (?, ?, ?)"
NAMED_GROUP = "SELECT id FROM named_groups WHERE task_id = ? AND name = ?"
ADD_COMMON = "INSERT INTO common_arguments VALUES (?, ?)"
HAS_COMMON = "SELECT 1 FROM common_arguments WHERE id = ?"
LAST_COMMON = "SELECT MAX(id) FROM common_arguments"
COMMON = "SELECT payload FROM common_arguments WHERE id = ?"

_ENDED_OF = (
    "(SELECT COALESCE(SUM(stop - (id & 1023)), 0) FROM {table}"
    " WHERE id BETWEEN batches.id << 10 AND (batches.id << 10) + 1023{which})"
)
IS_UNFINISHED = (
    f"count > {_ENDED_OF.format(table='results', which='')}"
    f" + {_ENDED_OF.format(table='failures', which=' AND ending > 0')}"
)
SETTLED = "SELECT client FROM settled"
SETTLE = "UPDATE settled SET client = ?"
SHELVE = "INSERT OR IGNORE INTO shelved VALUES (?)"
UNSHELVE = "DELETE FROM shelved WHERE batch = ?"
COUNT_SHELVED = (
    "SELECT COALESCE(SUM(count"
    f" - {_ENDED_OF.format(table='results', which='')} - {_ENDED_OF.format(table='failures', which=' AND ending > 0')}"
    "), 0) FROM batches JOIN shelved ON batches.id = shelved.batch"
)
SHELVED = f"SELECT id, parent FROM batches JOIN shelved ON batches.id = batch WHERE {IS_UNFINISHED} ORDER BY id"
IS_SHELVED = "SELECT 1 FROM shelved WHERE batch = ?"
UNFINISHED_OF_GROUP = (
    f"SELECT id, parent FROM batches JOIN named_batches ON batches.id = batch WHERE named_batches.group_id = ? AND {IS_UNFINISHED}"
    " ORDER BY id"
)
END_OF_STRETCH = "SELECT MAX(id) FROM (SELECT id FROM batches WHERE id > ? ORDER BY id LIMIT ?)"
UNFINISHED = (
    "SELECT id, parent FROM batches WHERE id > ? AND id <= ? AND id NOT IN (SELECT batch FROM shelved)"
    f" AND {IS_UNFINISHED} ORDER BY id"
)
PARENT = "SELECT parent FROM batches WHERE id = ?"
EXTRAS = "SELECT count, extras FROM batches WHERE id = ?"
LEFT_OF_BATCH = (
    f"SELECT count - {_ENDED_OF.format(table='results', which='')}"
    f" - {_ENDED_OF.format(table='failures', which=' AND ending > 0')} FROM batches WHERE id = ?"
)
HAS_ENDED = (
    "SELECT EXISTS (SELECT 1 FROM results WHERE id BETWEEN ? AND ? AND ? < stop)"
    " OR EXISTS (SELECT 1 FROM failures WHERE ending > 0 AND id BETWEEN ? AND ? AND ? < stop)"
)
COUNTS_OF_BATCHES = (
    "SELECT task_id, SUM(count), SUM(succeeded), SUM(failed) FROM ("
    f" SELECT tasks.task_id, batches.count, {_ENDED_OF.format(table='results', which='')} AS succeeded,"
    f"  {_ENDED_OF.format(table='failures', which=' AND ending > 0')} AS failed"
    " FROM batches JOIN tasks ON tasks.id = batches.task WHERE batches.id >= ? AND batches.id < ?"
    ") GROUP BY task_id"
)
ADD_BLOB = "INSERT OR IGNORE INTO blobs VALUES (?, ?, ?, ?)"
FORGET_BLOBS = "DELETE FROM blobs WHERE kind = ? AND id = ?"
BLOBS = (
    "SELECT kind, id, name, size FROM blobs WHERE kind = 1"
    f" OR NOT EXISTS (SELECT 1 FROM batches WHERE batches.id = blobs.id AND NOT ({IS_UNFINISHED}))"
)

PURGE = tuple(
    f"DELETE FROM {table}"
    for table in (
        "results",
        "failures",
        "transitions",
        "batches",
        "cache_keys",
        "named_batches",
        "named_groups",
        "common_arguments",
        "shelved",
        "blobs",
    )
)

# What retention asks for and forgets.

OLDEST_BATCH = "SELECT id, registered FROM batches WHERE id >= ? ORDER BY id LIMIT 1"
BATCH_TO_FORGET = "SELECT count, group_id, extras FROM batches WHERE id = ?"
ENDED = (
    "SELECT SUM(calls), MAX(ended) FROM ("
    " SELECT stop - (id & 1023) AS calls, started + took AS ended FROM results WHERE id BETWEEN :first AND :last"
    " UNION ALL"
    " SELECT stop - (id & 1023), ended FROM failures WHERE id BETWEEN :first AND :last AND ending > 0)"
)
IS_NAMED = "SELECT 1 FROM named_batches WHERE group_id = ? AND batch = ?"
NAMED_SINCE = "SELECT b.id, b.registered FROM named_batches n JOIN batches b ON b.id = n.batch WHERE n.group_id = ?"
FORGET_NAME = ("DELETE FROM named_groups WHERE id = ?", "DELETE FROM named_batches WHERE group_id = ?")
FORGET_OUTCOMES = tuple(
    f"DELETE FROM {table} WHERE id BETWEEN :first AND :last" for table in ("results", "failures", "transitions")
)
FORGET_BATCH = ("DELETE FROM batches WHERE id = ?", "DELETE FROM shelved WHERE batch = ?")
BLOBS_OF_RESULTS = "SELECT id, SUM(size) FROM blobs WHERE kind = 1 AND id BETWEEN :first AND :last GROUP BY id"
FORGET_BLOBS_OF_RESULTS = "DELETE FROM blobs WHERE kind = 1 AND id BETWEEN :first AND :last"
FORGET_CACHE_KEY = "DELETE FROM cache_keys WHERE key = ? AND id = ?"
FORGET_COMMON = (  # The number stands at the end of the head of `extras`; see protocol/extras.py.
    "DELETE FROM common_arguments WHERE id = :common AND NOT EXISTS ("
    " SELECT 1 FROM batches WHERE id BETWEEN :first AND :last AND group_id = :group AND substr(extras, 29, 8) = :bytes)"
)
FORGET_CLIENTS = (
    "DELETE FROM clients WHERE id BETWEEN ? AND ? AND NOT EXISTS ("
    " SELECT 1 FROM batches WHERE batches.id BETWEEN clients.id << 29 AND ((clients.id + 1) << 29) - 1)"
)
