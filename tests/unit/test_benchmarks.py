"""The arithmetic of the benchmark report."""

from __future__ import annotations

import pytest

from benchmarks import parts, report

FACTS = {"date": "d", "cpus": 2, "cpu": "c", "system": "s", "python": "p", "commit": "k", "packages": {"pynenc": "1"}}


def bar(workload: str, peer: str | None) -> report.Bar:
    return next(one for one in report.BARS if one.workload == workload and one.peer == peer)


def test_speeds_are_theirs_over_ours() -> None:
    figures = {"single_calls": {"pynenc": 2.0, "Pool": 7.0}}
    assert report.judge(bar("single_calls", "Pool"), figures) == (3.5, False)


def test_the_fastest_peer_counts_and_bare_processes_are_none() -> None:
    figures = {"round_trip": {"pynenc": 1.0, "bare": 0.1, "Pool": 2.0, "ray": 4.0}}
    assert report.judge(bar("round_trip", "fastest"), figures) == (0.5, True)


def test_what_was_not_measured_is_not_judged() -> None:
    assert report.judge(bar("round_trip", "fastest"), {}) is None
    assert report.judge(bar("round_trip", "fastest"), {"round_trip": {"pynenc": 1.0}}) is None
    assert report.judge(bar("bulk_map", "joblib"), {"bulk_map": {"pynenc": 1.0, "Pool": 1.0}}) is None


def test_fixed_bars_need_no_peer() -> None:
    assert report.judge(bar("disk", None), {"disk": {"pynenc": 61.0}}) == (61.0, False)


def test_the_table_shows_figures_with_units_and_the_bars() -> None:
    text = report.markdown({"disk": {"pynenc": 20.0}, "round_trip": {"pynenc": 1e-4, "Pool": 2e-4}}, FACTS)
    assert "20.00 bytes" in text
    assert "100 µs" in text
    assert "| 0.50 × | yes |" in text


@pytest.mark.parametrize("part", [parts.client, parts.supervisor, parts.worker])
def test_the_parts_of_a_call_are_measured(part, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(parts, "COUNT", 3)
    assert 0 < part() < 1e6
