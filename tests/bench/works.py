"""The pieces of work that are timed: what is prepared before, and the command whose seconds count."""

from dataclasses import dataclass
from typing import Callable

MIB, GIB = 1 << 20, 1 << 30
SMALL_FILES = 20_000
GIT_FILES = 5_000


@dataclass
class Work:
    """All are called with a place and the size of large files; `run` returns the seconds of one round.

    prepare: once a place. before, tidy: around each round. cold: the page cache is dropped before each round.
    """

    name: str
    run: Callable
    prepare: Callable = lambda place, size: None
    before: Callable = lambda place, size: None
    tidy: Callable = lambda place, size: None
    cold: bool = False


def worker(*arguments):
    """Work of worker.c on FILE, the first of the arguments after the kind."""
    def run(place, size):
        kind, name, *rest = arguments
        return float(place.run(place.tools.worker, kind, place.dir / name,
                               *[size if word == "SIZE" else word for word in rest]))
    return run


def large_file(place, size):
    if not place.has(place.dir / "large"):
        place.run(place.tools.worker, "write", place.dir / "large", MIB, size)
        place.settle()


# ---- shards that share tensors ----

WRITE_SHARDS = r"""
import json, os, random, struct, sys
directory, size = sys.argv[1], int(sys.argv[2])
tensors = 64
each = size // tensors
names = [f"layer.{number:03}" for number in range(tensors)]
header = json.dumps({name: {"dtype": "U8", "shape": [each], "data_offsets": [number * each, (number + 1) * each]}
                     for number, name in enumerate(names)}).encode()
header += b" " * (-len(header) % 8)
for shard in ("base", "tuned"):
    with open(f"{directory}/{shard}.safetensors", "wb") as f:
        f.write(struct.pack("<Q", len(header)) + header)
        for number in range(tensors):
            seed = number if shard == "base" or number % 2 == 0 else -number
            block = random.Random(seed).randbytes(1 << 20)
            for at in range(0, each, len(block)):
                part = struct.pack("<q", at) + block[8:]
                f.write(part[:each - at])
"""


def composed_shard(place, size):
    """A shard every second tensor of which is another shard's."""
    if not place.has(place.dir / "tuned.safetensors"):
        place.run("python3", "-c", WRITE_SHARDS, place.dir, size)
        place.settle()


# ---- trees ----

def copied(place, size):
    """cp -r of a directory with the large file, inside the place."""
    return timed(place, f"mkdir -p {place.dir}/model && ln -f {place.dir}/large {place.dir}/model/large",
                 f"cp -r {place.dir}/model {place.dir}/copy")


def remove_copy(place, size):
    place.run("rm", "-r", place.dir / "copy")


MAKE_REPOSITORY = r"""
set -e
rm -rf "$1"; mkdir "$1"; cd "$1"; git init -q .
for i in $(seq "$2"); do mkdir -p d$((i % 50)); echo "file $i" > d$((i % 50))/$i.txt; done
git -c user.name=x -c user.email=x@x add . && git -c user.name=x -c user.email=x@x commit -qm all
"""


def repository(place, size):
    place.run("sh", "-c", MAKE_REPOSITORY, "sh", place.base / "repository", GIT_FILES)


def cloned(place, size):
    return timed(place, "true", f"git clone -q --no-local {place.base}/repository {place.dir}/clone")


def remove_clone(place, size):
    place.run("rm", "-rf", place.dir / "clone")


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


def small(kind):
    return worker(kind, "small", SMALL_FILES)


def small_directory(place, size):
    if not place.has(place.dir / "small"):
        place.run("mkdir", place.dir / "small")


def small_files(place, size):
    small_directory(place, size)
    if not place.has(place.dir / "small" / "0"):
        place.run(place.tools.worker, "create", place.dir / "small", SMALL_FILES)
        place.settle()


def no_small_files(place, size):
    place.run("find", place.dir / "small", "-mindepth", "1", "-delete")


def remove_large_copy(place, size):
    place.run("rm", "-f", place.dir / "written")
    place.settle()


def both(name, *arguments, prepare):
    """A work cold and warm."""
    return [Work(f"{name}, cold", worker(*arguments), prepare, cold=True),
            Work(f"{name}, warm", worker(*arguments), prepare)]


WORKS = [
    *both("read, 1 MiB", "read", "large", MIB, prepare=large_file),
    *both("map, 1 thread", "map", "large", 1, prepare=large_file),
    *both("map, 8 threads", "map", "large", 8, prepare=large_file),
    Work("random 4 KiB, cold", worker("random", "large", 4096, 4000), large_file, cold=True),
    Work("random 4 KiB, warm", worker("random", "large", 4096, 100_000), large_file),
    Work("random 1 MiB, cold", worker("random", "large", MIB, 300), large_file, cold=True),
    Work("composed, read, cold", worker("read", "tuned.safetensors", MIB), composed_shard, cold=True),
    Work("composed, map, cold", worker("map", "tuned.safetensors", 1), composed_shard, cold=True),
    Work("write, 16 MiB", worker("write", "written", 16 * MIB, "SIZE"), tidy=remove_large_copy),
    Work("cp -r inside", copied, large_file, tidy=remove_copy),
    Work("create small", small("create"), small_directory, tidy=no_small_files),
    Work("stat small", small("stat"), small_files),
    Work("read small", small("open"), small_files),
    Work("remove small", small("remove"), small_directory, before=small_files),
    Work("git clone", cloned, repository, tidy=remove_clone),
]
