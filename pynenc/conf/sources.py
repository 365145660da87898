"""Sources of configuration, in the order in which they win.

environment > task options > `config_values` > file > defaults
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeVar

from pynenc.conf.field import Field
from pynenc.exceptions import ConfigError
from pynenc.named_tuples import NamedTuple

PREFIX = "PYNENC__"
FILEPATH_VARIABLE = "PYNENC__FILEPATH"
LEGACY_VARIABLES = {"PYNENC__DEV_MODE_FORCE_SYNC_TASKS": "PYNENC_DEV_MODE_FORCE_SYNC_TASK"}
"""Older names of variables; the newer one wins."""

PROJECT_FILES = ("pyproject.toml", "setup.cfg", "pynenc.toml", "pynenc.json", ".git")
"""What marks the top folder of a project."""

T = TypeVar("T")


class Found(NamedTuple):
    """What a source says of a field."""

    value: Any
    source: str


class Config:
    """Resolved configuration values.

    Subclasses list their fields as class attributes. All values are resolved when an object is made, so that an
    error in any source shows at once.

    Args:
        config_values: Values from the program, by field name, with a dictionary per section.
        config_filepath: The file to read; None looks for one.

    Raises:
        ConfigError: Names the source, the field and the expected type.
    """

    section: ClassVar[str] = ""

    def __init__(self, config_values: Mapping[str, Any] | None = None, config_filepath: str | None = None) -> None:
        self._values: dict[str, Any] = {}
        self._sources: dict[str, str] = {}
        self._file = ""
        given = list(self._given(config_values or {}, config_filepath))
        for field in self.fields():
            self._resolve(field, given)

    @classmethod
    def fields(cls) -> list[Field[Any]]:
        """The fields, in the order of their definition."""
        return [value for owner in reversed(cls.__mro__) for value in vars(owner).values() if isinstance(value, Field)]

    @classmethod
    def variable(cls, field: Field[Any]) -> str:
        """The environment variable for a field of this class alone."""
        return f"{PREFIX}{cls.__name__.upper()}__{field.name.upper()}"

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and not hasattr(type(self), name):
            raise unknown_name("set by the program", name, [field.name for field in self.fields()])
        super().__setattr__(name, value)

    @property
    def config_filepath(self) -> str | None:
        """The absolute path of the file that was read; None when there was none."""
        return os.path.abspath(self._file) if self._file else None

    def value_of(self, field: Field[T]) -> T:
        """The value of a field."""
        value: T = self._values[field.name]
        return value

    def set_value(self, field: Field[Any], value: Any) -> None:
        """Set a field from the program.

        Raises:
            ConfigError: The value has the wrong type.
        """
        self._values[field.name] = _convert(field, Found(value, "set by the program"))
        self._sources[field.name] = "set by the program"

    def source_of(self, field: Field[Any]) -> str:
        """Where the value of a field comes from."""
        return self._sources[field.name]

    def _given(self, config_values: Mapping[str, Any], config_filepath: str | None) -> Iterator[dict[str, Found]]:
        """What each source but the environment says, the winner first."""
        yield self._table(config_values, "config_values")
        content, self._file = read_file(config_filepath)
        yield self._table(content, self._file or "no file")

    def _table(self, content: Mapping[str, Any], source: str) -> dict[str, Found]:
        """This class's part of a file or of `config_values`; names that nobody knows are errors."""
        table = dict(content)
        inner = table.pop(self.section, {}) if self.section else {}
        if not isinstance(inner, Mapping):
            raise ConfigError(source, self.section, f"expected a table of fields, got {inner!r}")
        if table:
            known = {**known_names(), **dict.fromkeys(sections())}
            for name in table:
                if name not in known:
                    raise unknown_name(source, name, known)
        mine = {name: field.name for field in self.fields() for name in field.names}
        found = {mine[name]: Found(value, source) for name, value in table.items() if name in mine}
        for name, value in inner.items():
            if name in mine:
                found[mine[name]] = Found(value, f"{source} [{self.section}]")
            elif not self._is_inner_table(name, value):
                raise unknown_name(f"{source} [{self.section}]", name, mine)
        return found

    def _is_inner_table(self, name: str, value: Any) -> bool:
        return False

    def _variables(self, field: Field[Any]) -> Iterator[str]:
        for name in field.names:
            yield f"{PREFIX}{type(self).__name__.upper()}__{name.upper()}"
            yield f"{PREFIX}{name.upper()}"
            if (legacy := LEGACY_VARIABLES.get(f"{PREFIX}{name.upper()}")) is not None:
                yield legacy

    def _resolve(self, field: Field[Any], given: list[dict[str, Found]]) -> None:
        found = Found(field.default, "default")
        for variable in self._variables(field):
            if variable in os.environ:
                found = Found(os.environ[variable], f"environment variable {variable}")
                break
        else:
            found = next((one[field.name] for one in given if field.name in one), found)
        is_default = found.source == "default"
        self._values[field.name] = found.value if is_default else _convert(field, found)
        self._sources[field.name] = found.source


def explain(config: Config) -> list[tuple[str, Any, str]]:
    """Each field of a configuration with its value and where that comes from."""
    return [(field.name, config.value_of(field), config.source_of(field)) for field in config.fields()]


def known_names() -> dict[str, None]:
    """Every field name of every configuration class."""
    from pynenc.conf.classes import config_classes

    return {name: None for kind in config_classes() for field in kind.fields() for name in field.names}


def sections() -> list[str]:
    """The tables that a file or `config_values` may have beside the fields of `ConfigPynenc`."""
    from pynenc.conf.classes import config_classes

    return [kind.section for kind in config_classes() if kind.section]


def unknown_name(source: str, name: str, known: Any) -> ConfigError:
    """The error for a name that nobody knows."""
    return ConfigError(source, name, f"unknown field{nearest(name, known)}")


def nearest(name: str, known: Any) -> str:
    """The valid names that are nearest to a wrong one, as the end of a sentence."""
    import difflib

    close = difflib.get_close_matches(name, list(known), n=3)
    return f", did you mean {' or '.join(map(repr, close))}?" if close else ""


def check_environment() -> None:
    """Refuse variables that look like ours and mean nothing.

    Raises:
        ConfigError: Names the variable and the nearest valid one.
    """
    ours = [name for name in os.environ if name.upper().startswith(PREFIX) and name != FILEPATH_VARIABLE]
    if not ours:
        return
    from pynenc.conf.classes import config_classes
    from pynenc.conf.config_task import option_fields

    valid = {f"{PREFIX}{name.upper()}" for name in known_names()}
    for kind in config_classes():
        names = [name for field in kind.fields() for name in field.names]
        valid.update(f"{PREFIX}{kind.__name__.upper()}__{name.upper()}" for name in names)
    for variable in ours:
        name, known = variable, valid
        if "#" in variable and variable.upper().startswith(f"{PREFIX}CONFIGTASK__"):
            name, known = variable.rpartition("__")[2].lower(), set(option_fields())
        if name not in known:
            raise unknown_name(f"environment variable {variable}", name, known)


def project_directory() -> str:
    """The nearest directory at or above the working directory that is the top of a project; else the working directory."""
    try:
        start = os.getcwd()
    except FileNotFoundError as error:
        raise ConfigError(
            "the working directory",
            os.environ.get("PWD", "."),
            "it is not there any more, and pynenc looks in it for its configuration: change to another",
        ) from error
    at = start
    while True:
        if any(os.path.exists(os.path.join(at, name)) for name in PROJECT_FILES):
            return at
        above = os.path.dirname(at)
        if above == at:
            return start
        at = above


def read_file(config_filepath: str | None) -> tuple[Mapping[str, Any], str]:
    """The content of the configuration file and its path; both empty when there is none.

    Raises:
        ConfigError: The file is not there or cannot be read.
    """
    path = config_filepath or os.environ.get(FILEPATH_VARIABLE)
    if path:
        return _load(path), path
    directory = project_directory()
    for name in ("pyproject.toml", "pynenc.toml", "pynenc.json", "pynenc.yaml", "pynenc.yml"):
        path = os.path.join(directory, name)
        if os.path.exists(path):
            content = _load(path)
            if content or name != "pyproject.toml":
                return content, path
    return {}, ""


_loaded: dict[str, tuple[int, int, Mapping[str, Any]]] = {}


def _load(path: str) -> Mapping[str, Any]:
    try:
        state = os.stat(path)
        known = _loaded.get(path)
        if known is None or known[:2] != (state.st_mtime_ns, state.st_size):
            known = _loaded[path] = (state.st_mtime_ns, state.st_size, _parse(path))
    except OSError as error:
        raise ConfigError(path, "config_filepath", f"cannot be read: {error.strerror}") from error
    return known[2]


def _may_configure(pyproject: bytes) -> bool:
    """Whether there may be a table `tool.pynenc`. Most only need pynenc, and to read TOML takes 10 ms."""
    if b"pynenc" not in pyproject:
        return False
    lines = pyproject.replace(b"setuptools", b"").splitlines()
    others = (b"[tool.", b"[[tool.")
    return any(b"tool" in line and (b"pynenc" in line or not line.startswith(others)) for line in lines)


def _parse(path: str) -> Mapping[str, Any]:
    ending = os.path.splitext(path)[1]
    with open(path, "rb") as file:
        raw = file.read()
    if os.path.basename(path) == "pyproject.toml" and not _may_configure(raw):
        return {}
    try:
        content: Any
        if ending == ".toml":
            import tomllib

            content = tomllib.loads(raw.decode())
        elif ending == ".json":
            import json

            content = json.loads(raw)
        elif ending in (".yaml", ".yml"):
            content = _parse_yaml(path, raw)
        else:
            raise ConfigError(path, "config_filepath", "expected a file that ends in .toml, .json, .yaml or .yml")
    except ValueError as error:
        raise ConfigError(path, "config_filepath", f"is not valid {ending[1:].upper()}: {error}") from error
    if isinstance(content, dict) and os.path.basename(path) == "pyproject.toml":
        content = content.get("tool", {}).get("pynenc", {})
    elif isinstance(content, dict) and isinstance(content.get("tool"), dict):
        content = content["tool"].get("pynenc", content)
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(path, "config_filepath", f"expected a table of fields, got {type(content).__name__}")
    return content


def _parse_yaml(path: str, raw: bytes) -> Any:
    try:
        import yaml
    except ImportError:
        raise ConfigError(path, "config_filepath", "YAML files need PyYAML: pip install pyyaml") from None
    try:
        return yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _convert(field: Field[Any], found: Found) -> Any:
    try:
        return field.convert(found.value)
    except (ValueError, TypeError):
        raise ConfigError(found.source, field.name, f"expected {field.expects}, got {found.value!r}") from None
