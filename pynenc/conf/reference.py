"""The configuration reference, made from the definitions: `python -m pynenc.conf.reference > docs/configuration.md`."""

from __future__ import annotations

from enum import Enum
from typing import Any

from pynenc.conf.classes import config_classes
from pynenc.conf.field import Field
from pynenc.conf.sources import Config

HEAD = """\
# Configuration

Every value has one definition in `pynenc/conf/`, from which this page is made. Values come from these sources; the
first that says something wins:

1. **Environment.** `PYNENC__FIELD`; for one class `PYNENC__CONFIGTASK__FIELD`; for one task
   `PYNENC__CONFIGTASK__MODULE#TASK__FIELD` (dots of the module are kept or written as `#`).
   `True`, `1`, `yes`, `on` are true; `False`, `0`, `no`, `off` are false.
2. **Task options**: `@app.task(max_worker_losses=0)`; [tasks](tasks.md) has an example of each.
3. **The program**: `Pynenc(config_values={"num_workers": 2})`; `app.conf.num_workers = 2` sets a value afterwards.
4. **A file**: `Pynenc(config_filepath=...)` or `PYNENC__FILEPATH`; else `[tool.pynenc]` in `pyproject.toml`, else
   `pynenc.toml`, `pynenc.json` or `pynenc.yaml` (with PyYAML), in the top folder of the project.
5. **The default.**

A wrong name or type is a `ConfigError` that says where it stands, which field it is and what is expected.
`pynenc show_config` prints each value and where it comes from.

In a file, fields of an app stand at the top, those of other classes in tables:

```toml
[tool.pynenc]
num_workers = 4

[tool.pynenc.task]              # for all tasks
max_worker_losses = 2

[tool.pynenc.task."jobs.add"]   # for one
max_worker_losses = 0

[tool.pynenc.state_backend]
durability = "FULL"
```
"""


def reference() -> str:
    """The page as Markdown."""
    return "\n".join([HEAD, *map(_section, config_classes())])


def _section(kind: type[Config]) -> str:
    table = f", table `{kind.section}`" if kind.section else ""
    lines = [
        f"## `{kind.__name__}`{table}",
        "",
        (kind.__doc__ or "").strip().splitlines()[0],
        "",
        "| field | type | default | meaning | environment |",
        "| --- | --- | --- | --- | --- |",
        *(_row(kind, field) for field in kind.fields()),
        "",
    ]
    return "\n".join(lines)


def _row(kind: type[Config], field: Field[Any]) -> str:
    name = " or ".join(f"`{one}`" for one in field.names)
    default = field.default.name if isinstance(field.default, Enum) else repr(field.default)
    return f"| {name} | {field.expects} | `{default}` | {field.doc} | `{kind.variable(field)}` |"


if __name__ == "__main__":
    print(reference(), end="")
