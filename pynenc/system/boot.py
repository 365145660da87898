"""Start another process of pynenc with its settings, which hold a key and so never stand on a command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import IO, Any

_PROGRAM = (
    "import json, sys; settings = json.load(sys.stdin); "
    "sys.path += [p for p in settings['boot_path'] if p not in sys.path]; "
    "from importlib import import_module; import_module(sys.argv[1]).main(settings)"
)


def start_module(
    module: str,
    settings: dict[str, Any],
    pass_fds: Sequence[int],
    environment: dict[str, str] | None = None,
    output: IO[bytes] | None = None,
    new_session: bool = False,
) -> subprocess.Popen[bytes]:
    """Start `module.main(settings)` in a new interpreter.

    The interpreter does not look for modules in the working directory, where a file of the user's may have the
    name of one in the standard library.

    Args:
        module: What to run.
        settings: What it is told; goes through a pipe, as JSON.
        pass_fds: Open files that it inherits under the same numbers.
        environment: Its environment variables; None for those of this process.
        output: Where it prints; None for where this process prints.
        new_session: Whether it stands apart from this process's terminal and its Ctrl-C.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _PROGRAM, module],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        env=environment,
        pass_fds=tuple(pass_fds),
        start_new_session=new_session,
    )
    assert process.stdin is not None
    with process.stdin as pipe:
        pipe.write(json.dumps(settings).encode())
    return process


def boot_path() -> list[str]:
    """Where a new interpreter finds pynenc and what it needs."""
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return [package, *filter(None, sys.path)]
