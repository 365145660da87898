"""The caller's process: batches of calls go out, results come in."""
