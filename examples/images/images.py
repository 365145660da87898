"""Clean a stack of noisy images: each image is one call, and a call takes and gives megabytes.

Run it with `pynenc run examples/images/images.py`; `--images 200 --size 1500` for more of it. The images are made here: a
moving ring under salt-and-pepper noise. The master image that all calls compare with is sent once, with `app.put`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from pynenc import Pynenc

app = Pynenc("images")


class Cleaned(NamedTuple):
    """An image without its noise, and how much of the master it covers."""

    image: Any
    covered: float


@app.task
def clean(image: Any, master: Any) -> Cleaned:
    """The median of each pixel and its eight neighbours."""
    padded = np.pad(image, 1, mode="edge")
    rows, columns = image.shape
    around = [padded[y : y + rows, x : x + columns] for y in range(3) for x in range(3)]
    median = np.median(np.stack(around), axis=0).astype(image.dtype)
    return Cleaned(median, float(np.mean(median[master > 0] > 0)))


def ring(size: int, at: float) -> Any:
    """A ring that stands further right the larger `at` is, from 0 to 1."""
    y, x = np.mgrid[:size, :size] / size
    distance = np.hypot(x - 0.2 - 0.6 * at, y - 0.5)
    return np.where(np.abs(distance - 0.15) < 0.03, np.uint8(200), np.uint8(0))


def noisy(images: int, size: int) -> Iterator[Any]:
    """The stack, image by image: it is never in memory as a whole."""
    chance = np.random.default_rng(1)
    for number in range(images):
        image = ring(size, number / images)
        spoilt = chance.random(image.shape)
        image[spoilt < 0.05], image[spoilt > 0.95] = 0, 255
        yield image


def main() -> None:
    """Clean all images as a stream, and see that it was worth it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--size", type=int, default=640, help="of each side, in pixels")
    options = parser.parse_args(sys.argv[1:])
    began = time.perf_counter()
    wrong = best = 0.0
    with app.put(ring(options.size, 0.5)) as master:
        calls = ((image, master) for image in noisy(options.images, options.size))
        for number, cleaned in enumerate(clean.stream(calls)):
            truth = ring(options.size, number / options.images)
            wrong += float(np.mean(cleaned.image != truth)) / options.images
            best = max(best, cleaned.covered)
    took = time.perf_counter() - began
    megabytes = options.images * options.size**2 / 1e6
    print(f"{options.images} images, {megabytes:.0f} MB each way, in {took:.2f} s")
    print(
        f"{100 * wrong:.2f} % of the pixels are wrong, of 10 % before; at best {100 * best:.0f} % of the master is covered"
    )
