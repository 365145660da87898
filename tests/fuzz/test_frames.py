"""Whatever bytes come, from strangers, clients or workers: the supervisor refuses them or acts on them, and goes on.

The parts are the real ones, from the frame reader to the database; only sockets and processes are left out, so a
million frames take a minute.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pynenc.blobs.references import Reference
from pynenc.supervisor.events import Looked
from tests import examples
from tests.fuzz import canary
from tests.fuzz.world import World


def fuzz(database: Path, seed: int, frames: int) -> World:
    """Send so many frames to one supervisor."""
    world = World(str(database), seed)
    try:
        while world.sent < frames:
            world.step()
        world.serve_honest_client()
    except Exception as error:
        error.add_note(f"seed {seed}, after {world.sent} frames")
        raise
    finally:
        world.close()
    return world


@pytest.mark.parametrize("seed", range(examples(4)))
def test_mutated_frames_are_refused_or_acted_on(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each of them is a new world; half of the frames are mutated, most of the others odd."""
    monkeypatch.setenv(canary.VARIABLE, str(tmp_path / "sang"))
    world = fuzz(tmp_path / "fuzz.db", seed, 4_000)
    assert world.refused > 500
    assert world.refusals.count == world.refused
    assert not (tmp_path / "sang").exists(), "something was unpickled"
    log = capfd.readouterr().err
    assert 100 <= log.count("refused connection") < 120, "the log tells of refusals, and is bounded"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_million_mutated_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(canary.VARIABLE, str(tmp_path / "sang"))
    sent = refused = seed = 0
    while sent < 1_000_000:
        seed += 1
        world = fuzz(tmp_path / f"{seed}.db", 1000 + seed, 20_000)
        sent, refused = sent + world.sent, refused + world.refused
    print(f"{sent:,} frames in {seed} worlds, {refused:,} refused")
    assert not (tmp_path / "sang").exists(), "something was unpickled"


def test_a_commit_in_the_middle_of_a_turn_frees_no_result_of_which_the_rules_have_not_heard(tmp_path: Path) -> None:
    """A client that comes over has what came before it committed, before the turn of that has come."""
    world = World(str(tmp_path / "middle.db"), 1)
    try:
        directory = world.blobs._directory
        assert directory.make_memory()
        name = bytes(range(16))
        Path(directory.path_in_memory(name)).write_bytes(b"a large result")
        world.blobs._arriving[1, 5] = [Reference(name, 14)]
        world.turn._inbox.add(Looked({}))
        world.turn._once_committed(lambda: None)
        assert directory.is_in_memory(name)
        world.turn.run()
        world.turn.commit()
        assert not directory.is_in_memory(name)  # The rules have heard of it, and it was not kept.
    finally:
        world.close()
