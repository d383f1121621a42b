"""Checkpoints taken in, kept and given back by weightfs, borg, restic and casync.

Each gets the same directory, and an empty place of its own. What is timed: to take it in until it is on the
disk, and to write it out again, both from dropped caches. What came back is compared by SHA-256.
"""

import hashlib
import os
import shutil
import sys
import time
from pathlib import Path

from places import Weightfs, WeightfsOfUser, run
from work import Special, can_drop_caches, drop_caches

MAKE_SET = Path(__file__).with_name("make_set.py")


def hashes(root):
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_file():
            with open(path, "rb") as f:
                found[str(path.relative_to(root))] = hashlib.file_digest(f, "sha256").hexdigest()
    return found


def disk_blocks(root):
    return sum(path.lstat().st_blocks * 512 for path in [root, *root.rglob("*")])


class Program:
    """`dir` is empty and its own; `what` the directory `set` that is taken in; `out` an empty directory."""

    name = "cp"
    command = "cp"

    def __init__(self, bench, directory):
        self.dir = directory
        self.environment = os.environ | {"HOME": str(directory), "BORG_BASE_DIR": str(directory / "home"),
                                         "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
                                         "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
                                         "RESTIC_PASSWORD": "benchmark",
                                         "RESTIC_CACHE_DIR": str(directory / "home")}
        self.kept = directory / "kept"

    def run(self, *command, cwd=None):
        return run(command, env=self.environment, cwd=cwd)

    def begin(self):
        self.kept.mkdir()

    def take_in(self, what):
        self.run("cp", "-r", what, self.kept)

    def stored(self):
        return disk_blocks(self.kept)

    def give_back(self, what, out):
        self.run("cp", "-r", self.kept / what.name, out)
        return out / what.name

    def end(self):
        shutil.rmtree(self.dir)


class Borg(Program):
    name = "borg"
    command = "borg"
    compression = "none"

    def begin(self):
        self.run("borg", "init", "--encryption=none", self.kept)

    def take_in(self, what):
        self.run("borg", "create", f"--compression={self.compression}", f"{self.kept}::all", what.name,
                 cwd=what.parent)

    def give_back(self, what, out):
        self.run("borg", "extract", f"{self.kept}::all", cwd=out)
        return out / what.name


class BorgCompressed(Borg):
    name = "borg, lz4"
    compression = "lz4"


class Restic(Program):
    name = "restic"
    command = "restic"
    compression = "off"

    def restic(self, *words):
        self.run("restic", "--quiet", "--repo", self.kept, "--compression", self.compression, *words)

    def begin(self):
        self.restic("init")

    def take_in(self, what):
        self.restic("backup", what)

    def give_back(self, what, out):
        self.restic("restore", "latest", "--target", out)
        return out / what.relative_to("/")


class ResticCompressed(Restic):
    name = "restic, zstd"
    compression = "auto"


class Casync(Program):
    name = "casync, zstd"
    command = "casync"

    def store(self):
        return f"--store={self.kept}/chunks.castr"

    def take_in(self, what):
        self.run("casync", "make", "--with=unix", self.store(), self.kept / "set.caidx", what)

    def give_back(self, what, out):
        self.run("casync", "extract", self.store(), self.kept / "set.caidx", out / what.name)
        return out / what.name


class Ours(Program):
    name = "weightfs"
    command = "cp"
    kind = Weightfs

    def __init__(self, bench, directory):
        self.bench = bench
        self.place = bench.extra(self.kind, f"backup-{self.kind.name.replace(' ', '-')}")
        super().__init__(bench, directory)

    def begin(self):
        self.place.mount()

    def take_in(self, what):
        self.place.run("cp", "-r", what, self.place.dir)
        while self.place.dirty():
            time.sleep(0.01)

    def stored(self):
        self.place.settle()
        return disk_blocks(self.place.store)

    def give_back(self, what, out):
        if self.place.user:
            shutil.chown(out, self.place.user, self.place.user)
        self.place.run("cp", "-r", self.place.dir / what.name, out)
        return out / what.name

    def end(self):
        self.place.umount()
        self.bench.remove(self.place)
        super().end()


class OursOfUser(Ours):
    name = "weightfs ordinary"
    kind = WeightfsOfUser


PROGRAMS = [Program, Ours, OursOfUser, Borg, BorgCompressed, Restic, ResticCompressed, Casync]


def timed(work, *arguments):
    os.sync()
    if can_drop_caches():
        drop_caches()
    begin = time.monotonic()
    value = work(*arguments)
    os.sync()
    return time.monotonic() - begin, value


def one_round(bench, kind, what, expected):
    """(seconds to take in, bytes stored, seconds to give back)"""
    directory = bench.base / "backup"
    directory.mkdir()
    out = directory / "out"
    program = kind(bench, directory)
    program.begin()
    taken, _ = timed(program.take_in, what)
    stored = program.stored()
    out.mkdir()
    given, back = timed(program.give_back, what, out)
    if hashes(back) != expected:
        raise RuntimeError(f"{program.name} gave back something else than what it was given")
    program.end()
    return taken, stored, given


def measure(bench):
    what = bench.base / "set"
    run([sys.executable, MAKE_SET, what, bench.sizes.set])
    expected = hashes(what)
    found, problems = {}, {}
    for kind in PROGRAMS:
        if issubclass(kind, Ours) and not bench.has(kind.kind):
            continue
        if not shutil.which(kind.command):
            problems[kind.name] = "not installed"
            continue
        bench.say(f"backup by {kind.name}")
        try:
            for _ in range(bench.sizes.backup_rounds):
                numbers = one_round(bench, kind, what, expected)
                of = found.setdefault(kind.name, {"taken_in": [], "stored": [], "given_back": []})
                for key, number in zip(of, numbers, strict=True):
                    of[key].append(number)
        except (RuntimeError, OSError) as error:
            problems[kind.name] = bench.text_of(error)
            bench.say(f"{kind.name}: {problems[kind.name]}")
        bench.clear("backup")
    size = sum(path.stat().st_size for path in what.rglob("*") if path.is_file())
    shutil.rmtree(what)
    return {"programs": found, "problems": problems, "files": len(expected), "bytes": size,
            "rounds": bench.sizes.backup_rounds}


WORKS = [Special("backup of checkpoints", "backups", measure)]
