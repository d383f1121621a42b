"""Works on large files: read, mapped, composed, written, copied."""

from work import (BINDFS, BINDFS_USER, DISK, MIB, PASSTHROUGH, ROOT, USER, Bound, Fixture, Measure, Work,
                  can_drop_caches, cold_and_warm, drop_caches, timed, worker)

SHARDS = 4  # of the checkpoint that is copied


# ---- what is read ----

def make_large(place, sizes):
    place.run(place.tools.worker, "write", place.fixtures / "large", MIB, sizes.large)


def make_composed(place, sizes):
    place.run("python3", "-c", WRITE_SHARDS, place.fixtures, sizes.large)


def make_viewed(place, sizes):
    make_composed(place, sizes)
    place.run("mkdir", place.fixtures / "viewed")
    place.run("cp", place.fixtures / "tuned.safetensors", place.fixtures / "viewed/model.safetensors")


def make_checkpoint(place, sizes):
    directory = place.fixtures / "checkpoint"
    place.run("mkdir", directory)
    place.run("sh", "-c", 'echo {} > "$1/config.json"', "sh", directory)
    place.run(place.tools.worker, "shards", directory, SHARDS, 2 * sizes.large)


WRITE_SHARDS = r"""
import json, os, random, struct, sys
directory, size = sys.argv[1], int(sys.argv[2])
tensors = 64
each = size // tensors
names = [f"layer.{number:03}" for number in range(tensors)]
ranges = {name: [number * each, (number + 1) * each] for number, name in enumerate(names)}
header = json.dumps({name: {"dtype": "U8", "shape": [each], "data_offsets": ranges[name]}
                     for name in names}).encode()
header += b" " * (-len(header) % 8)
for shard in ("base", "tuned"):
    with open(f"{directory}/{shard}.safetensors", "wb") as f:
        f.write(struct.pack("<Q", len(header)) + header)
        for number in range(tensors):
            seed = f"{'base' if number % 2 == 0 else shard} {number}"  # a number's sign would not count
            block = random.Random(seed).randbytes(1 << 20)
            for at in range(0, each, len(block)):
                part = struct.pack("<q", at) + block[8:]
                f.write(part[:each - at])
"""

LARGE = Fixture("a large file", make_large, ("large",))
COMPOSED = Fixture("a shard every second tensor of which is another shard's", make_composed,
                   ("base.safetensors", "tuned.safetensors"))
VIEWED = Fixture("a model of that shard, seen in two", make_viewed,
                 ("viewed", "base.safetensors", "tuned.safetensors"))
CHECKPOINT = Fixture("a checkpoint of four shards", make_checkpoint, ("checkpoint",))

READ_COLD = (Bound(ROOT, "speed", 0.95, DISK), Bound(USER, "speed", 1.2, BINDFS_USER))
READ_WARM = (Bound(ROOT, "speed", 0.95, DISK), Bound(USER, "speed", 0.9, DISK))
RANDOM = (Bound(ROOT, "speed", 0.9, DISK), Bound(USER, "speed", 1.2, BINDFS_USER))
COMPOSITION = (Bound(ROOT, "speed", 1.5, BINDFS), Bound(USER, "speed", 1.2, BINDFS_USER))


def random_reads(block, count, warm=False):
    """`count` says how many, of the sizes; before warm ones all of the file is read."""
    def run(place, sizes):
        if warm:
            worker("read", "large", MIB)(place, sizes)
        return worker("random", "large", block, count(sizes))(place, sizes)
    return run


def random_works(name, block, cold, warm):
    return cold_and_warm(name, random_reads(block, cold), RANDOM, RANDOM, (LARGE,),
                         random_reads(block, warm, warm=True))


# ---- viewed ----

def read_view(how, argument):
    """Cold: the seconds for the shard, those for a view of it in two, and how many times as fast the view is."""
    def run(place, sizes):
        cut = place.dir / "viewed/.shards" / str(sizes.large // 2)
        seconds = []
        for names in (["tuned.safetensors"], [cut / f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]):
            if can_drop_caches():
                drop_caches()
            seconds.append(sum(worker(how, name, argument)(place, sizes) for name in names))
        return *seconds, seconds[0] / seconds[1]
    return run


def view_work(name, how, argument):
    name = f"view of a composed shard, {name}"
    return Work(name, (Measure(f"{name}: the shard"), Measure(f"{name}: the view"),
                       Measure(f"{name}: speed", (Bound(ROOT, "at least", 0.9), Bound(USER, "at least", 0.9)),
                               "× the shard")),
                read_view(how, argument), (VIEWED,), warm_up=False, places=(ROOT, USER))


# ---- written ----

def twice(sizes):
    return 2 * sizes.large


def remove_written(place, sizes):
    place.run("rm", "-f", place.dir / "written")


# ---- replaced ----

REPLACED = 64 * MIB  # a shard that is saved again


def replace(place, sizes):
    """Seconds to write a file beside the one that has the name, and to rename it over that."""
    seconds = worker("write", "new", MIB, REPLACED)(place, sizes)
    return seconds, timed(place, "true", f"mv -f {place.dir}/new {place.dir}/replaced")


def make_replaced(place, sizes):
    worker("write", "replaced", MIB, REPLACED)(place, sizes)
    place.settle()


def remove_replaced(place, sizes):
    place.run("rm", "-f", place.dir / "replaced")


# ---- copied ----

def copy(place, sizes):
    """Seconds of cp -r inside the place, and the bytes that the store takes more since."""
    kept = place.kept()
    seconds = timed(place, "true", f"cp -r {place.dir}/checkpoint {place.dir}/copy")
    if kept is None:
        return seconds, None
    place.settle()
    return seconds, (place.kept() - kept) / MIB


def remove_copy(place, sizes):
    place.run("rm", "-rf", place.dir / "copy")


WORKS = [
    cold_and_warm("sequential read", worker("read", "large", MIB), READ_COLD, READ_WARM, (LARGE,)),
    cold_and_warm("mmap, 1 thread", worker("map", "large", 1), READ_COLD, READ_WARM, (LARGE,)),
    cold_and_warm("mmap, 8 threads", worker("map", "large", 8), READ_COLD, READ_WARM, (LARGE,)),
    cold_and_warm("mmap, 32 threads", worker("map", "large", 32), (), (), (LARGE,)),
    random_works("random reads of 4 KiB", 4096, lambda sizes: sizes.random_small,
                 lambda sizes: 10 * sizes.random_small),
    random_works("random reads of 1 MiB", MIB, lambda sizes: sizes.random_large,
                 lambda sizes: 5 * sizes.random_large),
    cold_and_warm("composed shard, sequential", worker("read", "tuned.safetensors", MIB), COMPOSITION, (),
                  (COMPOSED,)),
    cold_and_warm("composed shard, mmap", worker("map", "tuned.safetensors", 1), COMPOSITION, (),
                  (COMPOSED,)),
    view_work("sequential", "read", MIB),
    view_work("mmap", "map", 1),
    Work("write", (Measure("write to close, 16 MiB each", (Bound(ROOT, "speed", 0.9, DISK),
                                                           Bound(USER, "speed", 1.5, BINDFS_USER))),),
         lambda place, sizes: (worker("write", "written", 16 * MIB, "SIZE", size=twice)(place, sizes),),
         tidy=remove_written, heavy=True, warm_up=False, places=(DISK, PASSTHROUGH, BINDFS_USER, ROOT, USER)),
    Work("replace", (Measure("a file of 64 MiB written"), Measure("renamed over another of 64 MiB")), replace,
         before=make_replaced, tidy=remove_replaced, heavy=True, places=(DISK, PASSTHROUGH, BINDFS_USER, ROOT, USER)),
    Work("cp -r", (Measure("cp -r inside", (Bound(ROOT, "at most", 0.05), Bound(USER, "at most", 0.05))),
                   Measure("cp -r inside: growth", (Bound(ROOT, "at most", 0.1), Bound(USER, "at most", 0.1)),
                           "MiB")),
         copy, (CHECKPOINT,), tidy=remove_copy, heavy=True, warm_up=False,
         places=(DISK, PASSTHROUGH, ROOT, USER)),
]
