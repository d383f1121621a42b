"""A large store, and what one operation on one file costs in stores of every size."""

import statistics
from pathlib import Path

from places import Weightfs, WeightfsOfUser
from work import ROOT, USER, Bound, Measure, Special, can_drop_caches, drop_caches

TENSORS = 1_000          # of a shard in the large store
TENSOR_BYTES = 512
SHARDS_OPENED = 200      # in the large store, before its memory is looked at
PATHS = 50               # that are probed in a store
MOUNTS, PASSES = 3, 2    # of each store: what is first is so once a mount
MOST_GROWTH = 3          # from the smallest to the largest; logarithmic growth from 10³ to 10⁶ is 2


# ---- stores ----

def build(place, shards, tensors, size, files, directories):
    place.run(place.tools.store, place.store, shards, tensors, size, files, directories)


def shard_paths(place, shards, count):
    chosen = range(0, shards, max(1, shards // count))
    return [place.dir / "shards0" / f"s{number}.safetensors" for number in chosen][:count]


def file_paths(place, files, directories, count):
    """Spread over all: a prime step, so that they are in different directories."""
    step = max(1, files // count) | 1
    chosen = [number for number in range(0, files, step)][:count]
    return [place.dir / f"d{number % directories}" / f"f{number}" for number in chosen]


def probe(place, paths, passes):
    """{operation: [microseconds]}"""
    found = {}
    lines = place.run(place.tools.probe, passes, text="".join(f"{path}\n" for path in paths))
    for line in lines.splitlines():
        name, *numbers = line.split("\t")
        found.setdefault(name, []).extend(map(float, numbers))
    return found


def first_opens(place, paths):
    """Milliseconds of each."""
    return [number / 1000 for number in probe(place, paths, 1)["first open and read"]]


# ---- the large store ----



def memory(pid):
    """MiB that the driver has, and had at most."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return [int(lines[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM")]


def bounds(value):
    return (Bound(ROOT, "at most", value), Bound(USER, "at most", value))


MOUNT = Measure("large store: mount, cold", bounds(1))
COLD_OPEN = Measure("large store: first open of a shard, cold", bounds(3), "ms")
OPEN = Measure("large store: first open of a shard", bounds(3), "ms")
RESIDENT = Measure("large store: resident memory", bounds(128), "MiB")
MOST = Measure("large store: most memory", (), "MiB")
LARGE_MEASURES = (MOUNT, COLD_OPEN, OPEN, RESIDENT, MOST)


def one_mount(place, shards):
    """The numbers of LARGE_MEASURES of a new mount."""
    is_cold = can_drop_caches()
    if is_cold:
        drop_caches()
    seconds = place.timed_mount()
    first, *others = shard_paths(place, shards, SHARDS_OPENED)
    cold = first_opens(place, [first])
    warm = first_opens(place, others)
    place.run("sh", "-c", f"ls -lR {place.dir} > {place.base}/listing")
    now, most = memory(place.pid())
    place.umount()
    if not is_cold:
        seconds, cold = None, [None]
    return [seconds, cold[0], statistics.median(warm), now, most]


def measure_large(bench):
    sizes = bench.sizes
    shards = max(2, (sizes.objects - sizes.files) // TENSORS)
    samples = {measure.name: {} for measure in LARGE_MEASURES}
    for kind in (Weightfs, WeightfsOfUser):
        if not bench.has(kind):
            continue
        place = bench.extra(kind, f"large-{kind.name.replace(' ', '-')}")
        build(place, shards, TENSORS, TENSOR_BYTES, sizes.files, max(1, sizes.files // 1000))
        place.run(place.tools.weightfs, "fsck", place.store)  # must find nothing
        for _ in range(sizes.rounds):
            for measure, number in zip(LARGE_MEASURES, one_mount(place, shards), strict=True):
                if number is not None:
                    samples[measure.name].setdefault(place.name, []).append(number)
        bench.remove(place)
    return {"measures": {measure.name: {"unit": measure.unit, "samples": samples[measure.name]}
                         for measure in LARGE_MEASURES},
            "rounds": sizes.rounds}


# ---- cost against size ----

def of_objects(place, n):
    shards = max(1, n // 100)
    build(place, shards, 100, TENSOR_BYTES, 0, 0)
    return lambda: shard_paths(place, shards, PATHS)


def of_files(place, n):
    directories = max(1, n // 1000)
    build(place, 0, 0, 0, n, directories)
    return lambda: file_paths(place, n, directories, PATHS)


def of_entries(place, n):
    build(place, 0, 0, 0, n, 1)
    return lambda: file_paths(place, n, 1, PATHS)


def of_tensors(place, n):
    build(place, 1, n, 128, 0, 0)
    return lambda: shard_paths(place, 1, 1)


DIMENSIONS = {
    "objects in the store": of_objects,
    "files in the store": of_files,
    "entries in the directory": of_entries,
    "tensors in the shard": of_tensors,
}


def measure_scale(bench):
    """{dimension: {operation: {size: [microseconds]}}} of root's mount, or whosever this is."""
    kind = Weightfs if bench.has(Weightfs) else WeightfsOfUser
    costs = {}
    for dimension, prepare in DIMENSIONS.items():
        of = costs.setdefault(dimension, {})
        for n in bench.sizes.scale:
            bench.say(f"{n:,} {dimension}")
            place = bench.extra(kind, "scale")
            paths = prepare(place, n)
            for _ in range(MOUNTS):
                place.mount()
                for operation, numbers in probe(place, paths(), PASSES).items():
                    of.setdefault(operation, {}).setdefault(str(n), []).extend(numbers)
                place.umount()
            bench.remove(place)
    return {"place": kind.name, "costs": costs, "most_growth": MOST_GROWTH, "rounds": MOUNTS}


WORKS = [
    Special("large store", "timed", measure_large,
            {measure.name: measure.bounds for measure in LARGE_MEASURES}),
    Special("cost against size", "scale", measure_scale),
]
