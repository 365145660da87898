"""What the census finds in one file. Plain functions: they know nothing of pynenc."""

from __future__ import annotations

import ast
from typing import NamedTuple

BRANCHES = (
    ast.If,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.ExceptHandler,
    ast.IfExp,
    ast.Assert,
    ast.comprehension,
    ast.match_case,
)


class Function(NamedTuple):
    """A function and its branching complexity: one, and one for each way the path can part."""

    name: str
    line: int
    complexity: int


class Report(NamedTuple):
    """What is in one file. `error` tells why it could not be parsed; everything else is zero then."""

    path: str
    lines: int
    functions: int
    classes: int
    imports: int
    complexity: int
    most_complex: Function | None
    error: str | None


def analyse(path: str) -> Report:
    """Parse one Python file and count what is in it."""
    with open(path, "rb") as file:
        source = file.read()
    try:
        tree = ast.parse(source, path)
    except (SyntaxError, ValueError, RecursionError) as error:
        # The standard library's tests contain files that are wrong on purpose.
        return Report(path, 0, 0, 0, 0, 0, None, f"{type(error).__name__}: {error}")
    functions: list[Function] = []
    classes = imports = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions.append(Function(node.name, node.lineno, complexity(node)))
        elif isinstance(node, ast.ClassDef):
            classes += 1
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imports += len(node.names)
    most_complex = max(functions, key=lambda one: one.complexity, default=None)
    total = sum(one.complexity for one in functions)
    return Report(path, source.count(b"\n"), len(functions), classes, imports, total, most_complex, None)


def complexity(function: ast.AST) -> int:
    """One, and one for each branch inside."""
    found = 1
    for node in ast.walk(function):
        if isinstance(node, BRANCHES):
            found += 1
        elif isinstance(node, ast.BoolOp):
            found += len(node.values) - 1
    return found
