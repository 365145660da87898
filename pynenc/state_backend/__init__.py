"""The state backend: batches, results and failures in one SQLite file per app and state directory.

The supervisor is its one writer (`store.Store`); everybody else reads (`reader.Reader`).
"""

from __future__ import annotations

from pynenc.state_backend.reader import Reader as StateBackend

__all__ = ["StateBackend"]
