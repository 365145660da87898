"""`pynenc status render`: the table of statuses as text, as SVG, or as the page in docs."""

from __future__ import annotations

import argparse
from html import escape

from pynenc.status import STATUSES, InvocationStatus

ROW_HEIGHT = 44
WIDTH = 900
BOX_WIDTH = 300
LEFT = 20


def render(options: argparse.Namespace) -> int:
    """Print the statuses in the format that was asked for."""
    print({"text": text, "svg": svg, "markdown": markdown}[options.format]())
    return 0


def text() -> str:
    """A line per status: what it means, and what may follow.

    >>> text().splitlines()[0].split()
    ['REGISTERED', '(supervisor)']
    """
    lines = []
    for status, rule in STATUSES.items():
        lines.append(f"{status} ({'final' if status.is_final else rule.owner})")
        lines.append(f"    {rule.means}")
        if rule.following:
            lines.append(f"    -> {', '.join(_in_order(rule.following))}")
    return "\n".join(lines)


def markdown() -> str:
    """The page docs/statuses.md."""
    rows = [
        f"| `{status}` | {rule.means} | {rule.owner} | {', '.join(f'`{one}`' for one in _in_order(rule.following)) or 'final'} |"
        for status, rule in STATUSES.items()
    ]
    return "\n".join(
        [
            "# Statuses of an invocation",
            "",
            "Made from the table in `pynenc/status.py` by `make docs`; `pynenc status render --format svg` draws it.",
            "A status is not stored: results and failures are, and what has neither stands where the supervisor's memory says.",
            "",
            "| status | means | who knows | may be followed by |",
            "| --- | --- | --- | --- |",
            *rows,
        ]
    )


def svg() -> str:
    """The statuses one below the other, with an arc for each change: blue downwards, brown back up."""
    order = list(STATUSES)
    height = ROW_HEIGHT * len(order) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">',
        "<title>Statuses of an invocation</title>",
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="context-stroke"/></marker></defs>',
    ]
    for status, rule in STATUSES.items():
        for following in _in_order(rule.following):
            parts.append(_arc(order.index(status), order.index(following)))
    for at, (status, rule) in enumerate(STATUSES.items()):
        top = 10 + ROW_HEIGHT * at
        fill = "#d9ead3" if status is InvocationStatus.SUCCESS else "#eeeeee" if status.is_final else "#dbe9f8"
        outline = 2 if status.is_final else 1
        parts.append(
            f'<rect x="{LEFT}" y="{top}" width="{BOX_WIDTH}" height="30" rx="6" fill="{fill}" stroke="#333" '
            f'stroke-width="{outline}"><title>{escape(rule.means)}</title></rect>'
        )
        parts.append(
            f'<text x="{LEFT + BOX_WIDTH / 2}" y="{top + 19}" text-anchor="middle">{status}'
            f"{' (final)' if status.is_final else ''}</text>"
        )
    return "\n".join([*parts, "</svg>"])


def _arc(start: int, stop: int) -> str:
    edge = LEFT + BOX_WIDTH
    down = stop > start
    begins, ends = 25 + ROW_HEIGHT * start + (4 if down else -4), 25 + ROW_HEIGHT * stop + (-4 if down else 4)
    bulge = edge + 40 + 42 * abs(stop - start)
    colour = "#3b6ea5" if down else "#b5651d"
    return (
        f'<path d="M{edge} {begins}C{bulge} {begins} {bulge} {ends} {edge} {ends}" fill="none" stroke="{colour}" '
        'stroke-opacity="0.7" marker-end="url(#arrow)"/>'
    )


def _in_order(statuses: frozenset[InvocationStatus]) -> list[InvocationStatus]:
    return [status for status in InvocationStatus if status in statuses]


if __name__ == "__main__":
    print(markdown())
