"""What a piece of work is: what it needs, what is timed, and what is wanted of it."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

MIB, GIB = 1 << 20, 1 << 30
DISK, BINDFS, PASSTHROUGH, BINDFS_USER = "disk", "bindfs", "passthrough", "bindfs ordinary"
ROOT, USER = "weightfs", "weightfs ordinary"
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True)
class Sizes:
    """How much there is to do. `tiny` is the smoke test."""

    large: int = 2 * GIB         # the file that is read; twice that is written and copied
    model: int = GIB             # of save_pretrained
    set: int = 64 * MIB          # the base model of the checkpoints that are backed up
    small_files: int = 20_000
    git_files: int = 5_000
    random_small: int = 4_000    # reads of 4 KiB, cold; 10 times that warm
    random_large: int = 300      # reads of 1 MiB, cold; 5 times that warm
    objects: int = 1_000_000     # of the large store
    files: int = 100_000
    scale: tuple = (1_000, 10_000, 100_000, 1_000_000)
    rounds: int = 5
    heavy_rounds: int = 3        # of works that take long
    backup_rounds: int = 1


TINY = Sizes(large=24 * MIB, model=8 * MIB, set=MIB, small_files=200, git_files=40, random_small=200,
             random_large=8, objects=20_000, files=2_000, scale=(100, 1_000), rounds=1, heavy_rounds=1)


@dataclass(frozen=True)
class Bound:
    """What is wanted at a place: `how` is one of

    speed     so many times as fast as `other`, at least
    time      so many times the time of `other`, at most
    at least, at most   the number itself
    """

    place: str
    how: str
    value: float
    other: str | None = None

    def text(self, unit):
        if self.how == "speed":
            return f"≥ {self.value:g} × {self.other}"
        if self.how == "time":
            return f"time ≤ {self.value:g} × {self.other}"
        return f"{'≥' if self.how == 'at least' else '≤'} {self.value:g} {unit}"


@dataclass(frozen=True)
class Measure:
    """One number that a work gives at each place."""

    name: str
    bounds: tuple = ()
    unit: str = "s"


@dataclass(frozen=True)
class Fixture:
    """Files that works need at a place. Made before the first of them, removed after the last."""

    name: str
    make: Callable    # (place, sizes)
    paths: tuple      # what is removed again


@dataclass(frozen=True)
class Work:
    """`run` gets a place and the sizes, does one round, and returns the numbers of `measures`, in order
    (None: not to be had here). before, tidy: around each round. places: where; None: everywhere."""

    name: str
    measures: tuple
    run: Callable
    needs: tuple = ()
    before: Callable = lambda place, sizes: None
    tidy: Callable = lambda place, sizes: None
    places: tuple | None = None
    heavy: bool = False
    warm_up: bool = True  # a round before those that count


@dataclass
class Special:
    """A work that is not the same thing at several places: `measure` does all of it and returns what is kept.

    bounds: {name of a measure: what is wanted}.
    """

    name: str
    kind: str
    measure: Callable  # (bench) -> dict
    bounds: dict = field(default_factory=dict)


def can_drop_caches():
    return os.geteuid() == 0


def drop_caches():
    os.sync()
    DROP_CACHES.write_text("3")


def cold_and_warm(name, once, cold, warm, needs=(), once_warm=None, heavy=False):
    """A work done twice in each round: with dropped caches, and again at once."""
    def run(place, sizes):
        first = None
        if can_drop_caches():
            drop_caches()
            first = once(place, sizes)
        else:
            once(place, sizes)
        return first, (once_warm or once)(place, sizes)

    measures = (Measure(f"{name}, cold", cold), Measure(f"{name}, warm", warm))
    return Work(name, measures, run, needs, heavy=heavy, warm_up=False)


def worker(*arguments, size=None):
    """One run of worker.c on a file, the first of the arguments after the kind; its seconds."""
    def run(place, sizes):
        kind, name, *rest = arguments
        words = [size(sizes) if word == "SIZE" else word for word in rest]
        return float(place.run(place.tools.worker, kind, place.dir / name, *words))
    return run


TIMED = r"""
import subprocess, sys, time
subprocess.run(sys.argv[1], shell=True, check=True)
begin = time.monotonic()
subprocess.run(sys.argv[2], shell=True, check=True)
print(time.monotonic() - begin)
"""


def timed(place, before, command):
    """Seconds of a shell command, after another that is not timed."""
    return float(place.run("python3", "-c", TIMED, before, command))
