"""The table of statuses."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from pynenc.cli import main, render
from pynenc.exceptions import InvocationStatusTransitionError
from pynenc.status import STATUSES, InvocationStatus, check_change


def test_every_status_has_its_row() -> None:
    assert set(STATUSES) == set(InvocationStatus)


def test_every_status_can_be_reached_and_every_way_ends() -> None:
    reached = {InvocationStatus.REGISTERED}
    while more := {after for one in reached for after in STATUSES[one].following} - reached:
        reached |= more
    assert reached == set(InvocationStatus)
    ends = {status for status in InvocationStatus if status.is_final}
    while more := {one for one in InvocationStatus if STATUSES[one].following & ends} - ends:
        ends |= more
    assert ends == set(InvocationStatus)


def test_only_final_statuses_have_nothing_after_them() -> None:
    assert {status.name for status in InvocationStatus if status.is_final} == {
        "SUCCESS",
        "FAILED",
        "CANCELLED",
        "KILLED",
        "CONCURRENCY_CONTROLLED_FINAL",
    }


@pytest.mark.parametrize("final", [status for status in InvocationStatus if status.is_final])
def test_nothing_follows_a_final_status(final: InvocationStatus) -> None:
    for after in InvocationStatus:
        with pytest.raises(InvocationStatusTransitionError, match=r"3-0-1.*final"):
            check_change("3-0-1", final, after)


def test_a_forbidden_change_names_both_and_what_is_allowed() -> None:
    with pytest.raises(InvocationStatusTransitionError, match=r"SUCCESS cannot follow REGISTERED.*PENDING"):
        check_change("3-0-1", InvocationStatus.REGISTERED, InvocationStatus.SUCCESS)


def test_the_picture_has_a_box_for_each_status_and_an_arrow_for_each_change(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["status", "render", "--format", "svg"])
    picture = ElementTree.fromstring(capsys.readouterr().out)
    space = "{http://www.w3.org/2000/svg}"
    assert len(picture.findall(f"{space}rect")) == len(InvocationStatus)
    assert len(picture.findall(f"{space}path")) == sum(len(rule.following) for rule in STATUSES.values())


def test_the_text_names_what_may_follow() -> None:
    lines = render.text().splitlines()
    assert lines[lines.index("SUCCESS (final)") + 1].strip() == STATUSES[InvocationStatus.SUCCESS].means
    assert "    -> REGISTERED, PAUSED, RETRY, REROUTED, SUCCESS, FAILED, KILLED" in lines
