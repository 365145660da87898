"""A short chaos run (`tests/chaos`) with fixed seeds: whatever is killed or stopped, the books are right."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import examples
from tests.chaos import workload
from tests.chaos.driver import ENOUGH, run

SECONDS = 5.0


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", range(1, 1 + examples(2)))
def test_chaos(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(workload.LEDGER, str(tmp_path / "ledger"))
    summary = run(tmp_path, SECONDS, seed)
    assert not summary.problems, f"seed {seed}: {summary.problems}"
    assert summary.kills >= ENOUGH
    assert summary.counts["rounds"] >= ENOUGH
    assert summary.counts["accepted"] > 0
