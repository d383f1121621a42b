"""The same random operations on the mount and on a plain directory: equal at every checkpoint.

    WEIGHTFS_RANDOM_SEEDS   seeds, comma-separated (default: a few fixed ones)
    WEIGHTFS_RANDOM_STEPS   operations for each seed (default 400)

Every operation runs on both sides and must give the same answer, its errno
included. A failure names the seed and the operation's number; the same seed
gives the same operations again.
"""

import os
import random
import stat
import subprocess

import pytest

from support import shards
from support.files import (FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, RENAME_EXCHANGE,
                           RENAME_NOREPLACE, fallocate, pwrite_all, renameat2, sha256)

SEEDS = [int(seed) for seed in os.environ.get("WEIGHTFS_RANDOM_SEEDS", "1,2,3,4").split(",")]
STEPS = int(os.environ.get("WEIGHTFS_RANDOM_STEPS", "400"))
CHECK_EVERY = 40
MAX_SIZE = 600_000
NAMES = [f"{letter}{number}" for letter in "ab" for number in range(6)]
DIRECTORIES = ["", "d0", "d1", "d0/e"]


class Sides:
    """Two roots, and an answer from each for every operation."""

    def __init__(self, *roots):
        self.roots = roots
        self.handles = [{} for _ in roots]

    def both(self, function, *args):
        answers = []
        for root, handles in zip(self.roots, self.handles):
            try:
                answers.append(function(root, handles, *args))
            except OSError as error:
                answers.append(("errno", error.errno))
        return answers

    def close_all(self):
        for handles in self.handles:
            for fd in handles.values():
                os.close(fd)
            handles.clear()


# Each operation: (root, handles, …) on one side; its answer is compared.

def write_at(root, handles, name, data, offset, flags):
    fd = os.open(root / name, os.O_WRONLY | flags)
    try:
        pwrite_all(fd, data, offset)
    finally:
        os.close(fd)


def create(root, handles, name, data, flags):
    fd = os.open(root / name, os.O_WRONLY | os.O_CREAT | flags, 0o644)
    try:
        if data:
            pwrite_all(fd, data, 0)
    finally:
        os.close(fd)


def hold(root, handles, name, slot):
    if slot in handles:
        os.close(handles.pop(slot))
    handles[slot] = os.open(root / name, os.O_RDWR)


def held_write(root, handles, slot, data, offset):
    if slot in handles:
        pwrite_all(handles[slot], data, offset)
        return os.fstat(handles[slot]).st_size


def held_read(root, handles, slot, length, offset):
    if slot in handles:
        return os.pread(handles[slot], length, offset)


def held_truncate(root, handles, slot, size):
    if slot in handles:
        os.ftruncate(handles[slot], size)


def let_go(root, handles, slot):
    if slot in handles:
        os.close(handles.pop(slot))


def read_at(root, handles, name, length, offset):
    fd = os.open(root / name, os.O_RDONLY)
    try:
        return os.pread(fd, length, offset)
    finally:
        os.close(fd)


def space(root, handles, name, mode, offset, length):
    fd = os.open(root / name, os.O_WRONLY)
    try:
        fallocate(fd, mode, offset, length)
    finally:
        os.close(fd)


def copy_range(root, handles, source, target, source_at, target_at, length):
    in_fd = os.open(root / source, os.O_RDONLY)
    try:
        out_fd = os.open(root / target, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            done = 0
            while done < length:
                n = os.copy_file_range(in_fd, out_fd, length - done, source_at + done, target_at + done)
                if n == 0:
                    break
                done += n
            return done
        finally:
            os.close(out_fd)
    finally:
        os.close(in_fd)


def cp(root, handles, source, target, *options):
    return subprocess.run(["cp", *options, root / source, root / target], capture_output=True).returncode


def rename(root, handles, source, target, flags):
    renameat2(root / source, root / target, flags)


def on_path(function):
    def operation(root, handles, name, *args):
        return function(root / name, *args)
    operation.__name__ = function.__name__
    return operation


truncate, unlink, mkdir, rmdir = map(on_path, (os.truncate, os.unlink, os.mkdir, os.rmdir))
chmod, utime = on_path(os.chmod), on_path(os.utime)


def link(root, handles, source, target):
    os.link(root / source, root / target)


def symlink(root, handles, text, target):
    os.symlink(text, root / target)


def content(generator):
    """Random bytes, bytes seen before (to be shared), or a shard with tensors of a small pool."""
    kind = generator.random()
    if kind < 0.25:
        pool = {f"t{n}": random.Random(n).randbytes(20_000 + 7 * n) for n in generator.sample(range(8), 4)}
        return shards.shard(pool, pad=generator.random() < 0.5)
    if kind < 0.5:
        return random.Random(generator.randrange(4)).randbytes(100_000)
    if kind < 0.6:
        return bytes(generator.randrange(200_000))
    return generator.randbytes(generator.choice([1, 100, 4096, 65_535, 65_537, 300_001]))


def choose(generator):
    """One operation and its arguments, which are the same for both sides."""
    def name():
        return os.path.join(generator.choice(DIRECTORIES), generator.choice(NAMES))

    def place():
        return generator.choice([0, 1, 4095, 4096, 65_536, generator.randrange(MAX_SIZE)])

    def slot():
        return generator.randrange(3)

    flags = generator.choice([0, RENAME_NOREPLACE, RENAME_EXCHANGE, 0])
    modes = [0, FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, FALLOC_ZERO_RANGE]
    return generator.choice([
        (create, name(), content(generator), generator.choice([0, os.O_TRUNC, os.O_EXCL])),
        (create, name(), content(generator), os.O_TRUNC),
        (write_at, name(), generator.randbytes(generator.randrange(1, 70_000)), place(), 0),
        (write_at, name(), b"appended", 0, os.O_APPEND),
        (read_at, name(), generator.randrange(1, 200_000), place()),
        (truncate, name(), place()),
        (unlink, name()),
        (rename, name(), name(), flags),
        (link, name(), name()),
        (symlink, name(), name()),
        (mkdir, generator.choice(DIRECTORIES[1:]), 0o755),
        (rmdir, generator.choice(DIRECTORIES[1:])),
        (rename, generator.choice(DIRECTORIES[1:]), generator.choice(DIRECTORIES[1:]), flags),
        (chmod, name(), generator.choice([0o600, 0o644, 0o755])),
        (utime, name(), (generator.randrange(2**31), generator.randrange(2**31))),
        (cp, name(), name()),
        (cp, name(), name(), "--sparse=always"),
        (copy_range, name(), name(), place(), place(), generator.randrange(1, MAX_SIZE)),
        (space, name(), generator.choice(modes), place(), generator.randrange(1, 100_000)),
        (hold, name(), slot()),
        (hold, name(), slot()),
        (held_write, slot(), generator.randbytes(generator.randrange(1, 10_000)), place()),
        (held_read, slot(), 50_000, place()),
        (held_truncate, slot(), place()),
        (let_go, slot()),
    ])


def picture(root):
    """Everything that must be equal: types, modes, links, sizes, times set, contents."""
    seen = {}
    for directory, names, files in os.walk(root):
        for name in names + files:
            path = os.path.join(directory, name)
            info = os.lstat(path)
            fact = [stat.S_IFMT(info.st_mode), stat.S_IMODE(info.st_mode), info.st_nlink]
            if stat.S_ISREG(info.st_mode):
                fact += [info.st_size, sha256(path)]
            elif stat.S_ISLNK(info.st_mode):
                fact += [info.st_size, os.readlink(path)]
            seen[os.path.relpath(path, root)] = fact
    return seen


def differing(left, right):
    return {name: (left.get(name), right.get(name))
            for name in left.keys() | right.keys() if left.get(name) != right.get(name)}


@pytest.mark.timeout(max(120, STEPS // 4))
@pytest.mark.parametrize("seed", SEEDS)
def test_random_operations(mount, plain, seed):
    """Same answers and same trees, with sealing and remounts in between."""
    generator = random.Random(seed)
    sides = Sides(mount.dir, plain)
    print(f"seed {seed}, {STEPS} operations")
    try:
        for number in range(STEPS):
            function, *args = choose(generator)
            ours, theirs = sides.both(function, *args)
            shown = [arg if not isinstance(arg, bytes) else f"<{len(arg)} bytes>" for arg in args]
            assert ours == theirs, f"seed {seed}, operation {number}: {function.__name__} {shown}"
            if number % CHECK_EVERY == CHECK_EVERY - 1:
                checkpoint(mount, sides, generator, f"seed {seed}, after operation {number}")
    finally:
        sides.close_all()
    mount.remount()
    assert differing(picture(mount.dir), picture(plain)) == {}


def checkpoint(mount, sides, generator, where):
    """Compare; often after everything was sealed, sometimes after a remount too."""
    kind = generator.random()
    if kind > 0.3:
        sides.close_all()
        mount.wait_sealed()
    if kind > 0.7:
        mount.remount()
    ours, theirs = (picture(root) for root in sides.roots)
    assert differing(ours, theirs) == {}, where
