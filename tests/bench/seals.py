"""How fast what was written is sealed."""

import time

from work import MIB, ROOT, USER, Bound, Measure, Work

QUIET = 0.3   # seconds from a file's last close to its seal, at most: fs/work.c
SEALERS = 2   # threads of the driver that seal: fs/work.h
SHARDS = 4


def seal(place, sizes):
    """GB/s of each processor that sealed, XXH3's alone, and their ratio.

    The bytes are on the disk before the shards are closed (that is what else a seal waits for), and in the
    page cache.
    """
    size = 2 * sizes.large
    place.run("mkdir", place.dir / "sealed")
    closed = float(place.run(place.tools.worker, "shards", place.dir / "sealed", SHARDS, size))
    while place.dirty():
        time.sleep(0.002)
    seconds = time.monotonic() - closed - QUIET
    speed = size / seconds / min(SEALERS, place.processors()) / 1e9
    alone = size / float(place.run(place.tools.worker, "hash", MIB, size)) / 1e9
    return speed, alone, speed / alone


FOREGROUND = r"""
"$1" hash 1048576 "$2" >/dev/null & "$1" hash 1048576 "$2" >/dev/null & wait
"""


def foreground(place, sizes):
    """Seconds that programs need who keep two processors busy for as long as a seal takes, and longer."""
    begin = time.monotonic()
    place.run("sh", "-c", FOREGROUND, "sh", place.tools.worker, 8 * sizes.large)
    return time.monotonic() - begin


def beside(place, sizes):
    """How fast they are while shards are sealed, of how fast they are alone."""
    alone = foreground(place, sizes)
    place.run("mkdir", place.dir / "sealed")
    place.run(place.tools.worker, "shards", place.dir / "sealed", SHARDS, 2 * sizes.large)
    while_sealing = foreground(place, sizes)
    dirty = place.dirty()
    place.settle()
    return alone / while_sealing, dirty


def remove(place, sizes):
    place.run("rm", "-rf", place.dir / "sealed")


def at_least(value):
    return (Bound(ROOT, "at least", value), Bound(USER, "at least", value))


WORKS = [
    Work("seal", (Measure("seal, per core", at_least(4), "GB/s"), Measure("XXH3 alone, one core", (), "GB/s"),
                  Measure("seal, share of XXH3 alone", at_least(0.5), "")),
         seal, tidy=remove, places=(ROOT, USER), heavy=True),
    Work("beside a seal", (Measure("programs beside a seal, share of their speed alone", at_least(0.9), ""),
                           Measure("files not sealed at their end", (), "")),
         beside, tidy=remove, places=(ROOT, USER), heavy=True),
]
