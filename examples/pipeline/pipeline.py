"""A diamond: one text is read, cleaned by two steps independently, and joined again; results are the arguments of what follows.

Run it with `pynenc run examples/pipeline/pipeline.py`. The script makes all calls at once and waits only for the last; what is
between them goes from worker to worker. With `--break` one step fails, and whatever depends on it says why.
"""

from __future__ import annotations

import argparse
import string
from collections import Counter
from typing import Any

from pynenc import Pynenc
from pynenc.exceptions import DependencyError

app = Pynenc("pipeline")


@app.task
def read(chapter: int) -> str:
    """The text of a chapter: the documentation that comes with a module of the standard library."""
    import importlib

    return importlib.import_module(("argparse", "asyncio", "typing", "unittest")[chapter % 4]).__doc__ or ""


@app.task
def words(text: str) -> Counter[str]:
    cleaned = text.lower().translate(str.maketrans("", "", string.punctuation))
    return Counter(cleaned.split())


@app.task
def letters(text: str, broken: bool = False) -> Counter[str]:
    if broken:
        raise ValueError("a broken step")
    return Counter(character for character in text.lower() if character.isalpha())


@app.task
def report(words: list[Counter[str]], letters: list[Counter[str]]) -> dict[str, Any]:
    total: Counter[str] = sum(words, Counter())
    return {"words": total.total(), "letters": sum(one.total() for one in letters), "most": total.most_common(3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chapters", type=int, default=100)
    parser.add_argument("--break", dest="broken", action="store_true", help="have one step fail")
    options = parser.parse_args()

    texts = read.parallelize([(chapter,) for chapter in range(options.chapters)])
    left = words.parallelize([(text,) for text in texts])
    right = letters.parallelize([(text, options.broken and at == 0) for at, text in enumerate(texts)])
    both: dict[str, Any] = {"words": left, "letters": right}
    try:
        found = report(**both).result
    except DependencyError as error:
        print(f"no report: {error}")
        return
    print(f"{found['words']:,} words, {found['letters']:,} letters in {options.chapters} chapters")
    print("most frequent:", ", ".join(f"{word} ({count})" for word, count in found["most"]))
