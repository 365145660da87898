"""Configuration: sources and their order, types, and errors that say where."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pynenc import ConfigError, Pynenc
from pynenc.cli import render
from pynenc.conf.classes import config_classes
from pynenc.conf.config_pynenc import ConfigPynenc
from pynenc.conf.config_state_backend import ConfigStateBackend, Durability
from pynenc.conf.config_task import (
    ConcurrencyControlType,
    ConfigTask,
    option_problems,
    options_from_json,
    options_to_json,
)
from pynenc.conf.reference import reference
from pynenc.conf.sources import explain
from pynenc.exceptions import RetryError
from tests.conftest import PROJECT


@pytest.fixture(autouse=True)
def empty_project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").touch()
    for name in ("STATE_DIR", "NUM_WORKERS", "DEV_MODE_FORCE_SYNC_TASKS"):
        monkeypatch.delenv(f"PYNENC__{name}", raising=False)
    return tmp_path


def test_each_source_wins_over_those_after_it(monkeypatch: pytest.MonkeyPatch, empty_project: Path) -> None:
    assert ConfigTask("m.f").max_retries == 0
    (empty_project / "pyproject.toml").write_text("[tool.pynenc]\nmax_retries = 1\n")
    assert ConfigTask("m.f").max_retries == 1
    (empty_project / "pyproject.toml").write_text(
        "[tool.pynenc]\nmax_retries = 1\n[tool.pynenc.task]\nmax_retries = 2\n"
    )
    assert ConfigTask("m.f").max_retries == 2
    text = (empty_project / "pyproject.toml").read_text()
    (empty_project / "pyproject.toml").write_text(text + '[tool.pynenc.task."m.f"]\nmax_retries = 3\n')
    assert ConfigTask("m.f").max_retries == 3
    assert ConfigTask("m.g").max_retries == 2
    assert ConfigTask("m.f", {"max_retries": 4}).max_retries == 4
    assert ConfigTask("m.f", {"max_retries": 4}, task_options={"max_retries": 5}).max_retries == 5
    monkeypatch.setenv("PYNENC__MAX_RETRIES", "6")
    assert ConfigTask("m.f", task_options={"max_retries": 5}).max_retries == 6
    monkeypatch.setenv("PYNENC__CONFIGTASK__MAX_RETRIES", "7")
    assert ConfigTask("m.f").max_retries == 7
    monkeypatch.setenv("PYNENC__CONFIGTASK__M#F__MAX_RETRIES", "8")
    assert ConfigTask("m.f").max_retries == 8
    assert ConfigTask("m.g").max_retries == 7


@pytest.mark.parametrize(
    "table",
    [
        "[tool.pynenc]\nnum_workers = 3",
        '[ tool . "pynenc" ]\nnum_workers = 3',
        "['tool'.'pynenc']\nnum_workers = 3",
        "[tool]\npynenc.num_workers = 3",
        "[tool] # ours\n[tool.other]\n[tool.pynenc]\nnum_workers = 3",
        "tool.pynenc.num_workers = 3",
        "tool = {pynenc = {num_workers = 3}}",
        "[tool.x]\n[tool]\npynenc = {num_workers = 3}",
    ],
)
def test_the_table_of_a_project_is_found_however_it_is_written(empty_project: Path, table: str) -> None:
    (empty_project / "pyproject.toml").write_text(f"{table}\n")
    assert ConfigPynenc().num_workers == 3


def test_a_project_that_only_needs_pynenc_is_not_read(monkeypatch: pytest.MonkeyPatch, empty_project: Path) -> None:
    project = '[build-system]\nrequires = ["setuptools"]\n[project]\ndependencies = ["pynenc"]\n[tool.ruff]\nline-length = 99\n'
    (empty_project / "pyproject.toml").write_text(project)
    monkeypatch.setitem(sys.modules, "tomllib", None)
    assert ConfigPynenc().config_filepath is None


@pytest.mark.parametrize(
    "variable", ["PYNENC__CONFIGTASK__A.B#F__MAX_RETRIES", "PYNENC__CONFIGTASK__A#B#F__MAX_RETRIES"]
)
def test_dots_of_a_module_are_kept_or_written_as_hashes(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "4")
    assert ConfigTask("a.b.f").max_retries == 4


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pynenc.toml", "num_workers = 3"),
        ("pynenc.json", '{"num_workers": 3}'),
        ("pynenc.yaml", "num_workers: 3"),
        ("pyproject.toml", "[tool.pynenc]\nnum_workers = 3"),
    ],
)
def test_every_kind_of_file_is_read(empty_project: Path, name: str, content: str) -> None:
    (empty_project / name).write_text(content)
    assert ConfigPynenc().num_workers == 3
    other = empty_project / "other" / name
    other.parent.mkdir()
    other.write_text(content.replace("3", "5"))
    assert ConfigPynenc(config_filepath=str(other)).num_workers == 5


def test_the_file_may_be_named_by_the_environment(monkeypatch: pytest.MonkeyPatch, empty_project: Path) -> None:
    (empty_project / "mine.toml").write_text("num_workers = 9")
    monkeypatch.setenv("PYNENC__FILEPATH", str(empty_project / "mine.toml"))
    assert ConfigPynenc().num_workers == 9


@pytest.mark.parametrize("word", ["True", "1", "yes", "ON", "true"])
def test_words_that_are_true(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.setenv("PYNENC__DEV_MODE_FORCE_SYNC_TASKS", word)
    assert ConfigPynenc().dev_mode_force_sync_tasks is True


@pytest.mark.parametrize("word", ["False", "0", "no", "OFF", "false"])
def test_words_that_are_false(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.setenv("PYNENC__DEV_MODE_FORCE_SYNC_TASKS", word)
    config = ConfigPynenc({"dev_mode_force_sync_tasks": True})
    assert config.dev_mode_force_sync_tasks is False
    assert config.force_sync is False


@pytest.mark.parametrize(
    ("said", "meant"),
    [("7d", 604800.0), ("12h", 43200.0), ("1.5 m", 90.0), ("2W", 1209600.0), (30, 30.0), ("0.5", 0.5), ("none", None)],
)
def test_durations_have_units(said: object, meant: float | None) -> None:
    assert ConfigStateBackend({"retention": said}).retention == meant


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("2GiB", 2 << 30),
        ("500MB", 500_000_000),
        ("1.5 gib", 3 << 29),
        (1 << 20, 1 << 20),
        ("1048576", 1 << 20),
        ("None", None),
    ],
)
def test_sizes_have_units(said: object, meant: int | None) -> None:
    assert ConfigStateBackend({"max_state_size": said}).max_state_size == meant


@pytest.mark.parametrize(
    "wrong",
    [{"retention": one} for one in ("7y", "d", "-1d", 0, True, "inf", "1d2h", "7 days", [])]
    + [{"max_state_size": one} for one in ("1KB", "2GG", "MiB", -1, "nan")],
)
def test_wrong_durations_and_sizes_are_told_of(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"like 45s, 30m, 12h, 7d|like 500MB or 2GiB"):
        ConfigStateBackend(wrong)


@pytest.mark.parametrize("variable", ["PYNENC_DEV_MODE_FORCE_SYNC_TASK", "PYNENC__DEV_MODE_FORCE_SYNC_TASKS"])
def test_synchronous_mode_follows_the_environment_at_each_call(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    config = ConfigPynenc()
    assert not config.force_sync
    monkeypatch.setenv(variable, "True")
    assert config.force_sync
    assert ConfigPynenc().dev_mode_force_sync_tasks
    monkeypatch.delenv(variable)
    assert not config.force_sync
    config.dev_mode_force_sync_tasks = True
    assert config.force_sync


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"num_workers": "many"}, ["config_values", "num_workers", "integer", "'many'"]),
        ({"num_workers": 0}, ["num_workers", "at least 1"]),
        ({"num_worker": 2}, ["config_values", "num_worker", "did you mean 'num_workers'"]),
        ({"logging_level": "LOUD"}, ["logging_level", "DEBUG"]),
        ({"dev_mode_force_sync_tasks": "perhaps"}, ["boolean"]),
    ],
)
def test_a_wrong_name_or_type_is_told_with_its_source(values: dict[str, object], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        Pynenc("wrong", config_values=values)
    for part in parts:
        assert part in str(raised.value)


def test_a_wrong_table_for_tasks_is_told_of() -> None:
    with pytest.raises(ConfigError, match="expected a table"):
        ConfigTask("m.f", {"task": 3})
    with pytest.raises(ConfigError, match="max_retries"):
        ConfigTask("m.f", {"task": {"m.f": {"max_retry": 3}}})


@pytest.mark.parametrize("header", ["tool.pynenc.task.jobs.add", 'tool.pynenc.task."jobs.add"'])
def test_a_table_for_a_task_may_be_quoted_or_not(empty_project: Path, header: str) -> None:
    (empty_project / "pyproject.toml").write_text(f"[tool.pynenc.task]\npriority = 1\n[{header}]\nmax_retries = 4\n")
    conf = ConfigTask("jobs.add")
    assert (conf.max_retries, conf.priority) == (4, 1)
    assert (ConfigTask("jobs.other").max_retries, ConfigTask("jobs.other").priority) == (0, 1)


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("PYNENC__NUM_WORKER", "PYNENC__NUM_WORKERS"),
        ("PYNENC__CONFIGTASK__M#F__MAX_RETRY", "max_retries"),
        ("PYNENC__CONFIGTASKS__M#F__MAX_RETRIES", "unknown field"),
    ],
)
def test_a_wrong_variable_is_told_of(monkeypatch: pytest.MonkeyPatch, variable: str, meant: str) -> None:
    monkeypatch.setenv(variable, "2")
    with pytest.raises(ConfigError, match=meant):
        ConfigPynenc()


def test_a_name_means_one_field() -> None:
    """Names are accepted without their section, so no two sections have one in common."""
    names = [name for kind in config_classes() for field in kind.fields() for name in field.names]
    assert len(names) == len(set(names))


def test_a_wrong_name_in_the_program_is_told_of() -> None:
    conf = ConfigPynenc()
    with pytest.raises(ConfigError, match=r"num_worker: unknown field, did you mean 'num_workers'"):
        conf.num_worker = 3
    conf.num_workers = 3
    assert conf.num_workers == 3


def test_files_that_are_missing_or_broken_are_told_of(empty_project: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        ConfigPynenc(config_filepath=str(empty_project / "nowhere.toml"))
    (empty_project / "broken.toml").write_text("= 3")
    with pytest.raises(ConfigError, match="not valid TOML"):
        ConfigPynenc(config_filepath=str(empty_project / "broken.toml"))
    (empty_project / "list.json").write_text("[1]")
    with pytest.raises(ConfigError, match="expected a table"):
        ConfigPynenc(config_filepath=str(empty_project / "list.json"))


def test_every_invalid_option_is_listed_with_the_nearest_names() -> None:
    problems = option_problems({"max_retry": 1, "key_argument": (), "max_retries": "x", "retry_for": (int,)})
    assert len(problems) == 4
    assert "max_retries" in problems[0]
    assert "key_arguments" in problems[1]
    assert "integer" in problems[2]
    assert "exception classes" in problems[3]


def test_exceptions_and_enums_may_be_named() -> None:
    config = ConfigTask(
        "m.f",
        {
            "retry_for": "ValueError, pynenc.exceptions.RetryError",
            "running_concurrency": "keys",
            "key_arguments": "a, b",
        },
    )
    assert config.retry_for == (ValueError, RetryError)
    assert config.running_concurrency is ConcurrencyControlType.KEYS
    assert config.key_arguments == ("a", "b")
    assert ConfigStateBackend({"state_backend": {"durability": "full"}}).durability is Durability.FULL


def test_options_come_back_from_json_as_they_were() -> None:
    options = {
        "retry_for": (ValueError, RetryError),
        "running_concurrency": ConcurrencyControlType.TASK,
        "key_arguments": ["a"],
        "disable_cache_args": {"b"},
        "triggers": {"every": (1, None)},
        "max_retries": 3,
    }
    assert options_from_json(options_to_json(options)) == options


def test_each_value_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYNENC__NUM_WORKERS", "3")
    explained = {name: (value, source) for name, value, source in explain(ConfigPynenc({"app_id": "x"}))}
    assert explained["num_workers"] == (3, "environment variable PYNENC__NUM_WORKERS")
    assert explained["app_id"] == ("x", "config_values")
    assert explained["logging_level"] == ("INFO", "default")


def test_the_state_directory_is_beside_the_project(monkeypatch: pytest.MonkeyPatch, empty_project: Path) -> None:
    inner = empty_project / "a" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert ConfigPynenc().state_path == str(empty_project / ".pynenc")
    assert ConfigPynenc({"state_dir": "here"}).state_path == str(inner / "here")


def test_the_reference_is_up_to_date() -> None:
    assert (PROJECT / "docs" / "configuration.md").read_text() == reference()


def test_the_page_of_statuses_is_up_to_date() -> None:
    assert (PROJECT / "docs" / "statuses.md").read_text() == f"{render.markdown()}\n"
