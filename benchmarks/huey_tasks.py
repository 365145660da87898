"""The tasks of the durable peer; its consumer imports this module by name."""

from __future__ import annotations

import os

from huey import SqliteHuey

from benchmarks import tasks

huey = SqliteHuey(filename=os.environ["BENCHMARK_HUEY"], fsync=False)
noop = huey.task()(tasks.noop)
burn = huey.task()(tasks.burn)
