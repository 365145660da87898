"""The worker's process: imports tasks by module path, runs leases, ships results."""
