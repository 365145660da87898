"""A parameter sweep: which regularised polynomial fits held-out data best? Every combination is one call.

Run it with `pynenc run examples/sweep/sweep.py`. The data are the 442 patients of the diabetes set that scikit-learn ships.
"""

from __future__ import annotations

import itertools
import time
from functools import cache
from typing import Any, NamedTuple

from pynenc import Pynenc

app = Pynenc("sweep")

DEGREES = (1, 2, 3)
STRENGTHS = tuple(10.0**power for power in range(-3, 5))
FOLDS = (3, 5, 10)


class Score(NamedTuple):
    """How well one combination predicts: the mean share of variance explained on held-out folds."""

    degree: int
    strength: float
    folds: int
    r2: float


@cache
def diabetes() -> tuple[Any, Any]:
    """The data, loaded once per process."""
    from sklearn.datasets import load_diabetes

    features, target = load_diabetes(return_X_y=True)
    return features, target


@app.task
def evaluate(degree: int, strength: float, folds: int) -> Score:
    """Cross-validate one combination."""
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler

    features, target = diabetes()
    model = make_pipeline(PolynomialFeatures(degree, include_bias=False), StandardScaler(), Ridge(strength))
    return Score(degree, strength, folds, float(cross_val_score(model, features, target, cv=folds).mean()))


def main() -> None:
    """Try all combinations and print the best."""
    from rich.console import Console
    from rich.table import Table

    combinations = list(itertools.product(DEGREES, STRENGTHS, FOLDS))
    began = time.perf_counter()
    scores = sorted(evaluate.parallelize(combinations).results, key=lambda score: -score.r2)
    took = time.perf_counter() - began
    table = Table("degree", "strength", "folds", "R² on held-out data", title="Best combinations")
    for score in scores[:8]:
        table.add_row(str(score.degree), f"{score.strength:g}", str(score.folds), f"{score.r2:.4f}")
    Console().print(table)
    print(f"{len(combinations)} combinations in {took:.2f} s")
