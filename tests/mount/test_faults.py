"""The driver's own calls fail: what its users then see, and what is there afterwards.

Sweeps of every call of lib/ are in tests/faults; here are few, on a real mount.

    WEIGHTFS_FAULT_SEED   of the draw (default 1)
    WEIGHTFS_FAULT_ROUNDS faults tried by the long form (default 200)
"""

import contextlib
import errno
import mmap
import os
import pathlib
import random
import struct

import pytest

from support.files import read_file, write_file

BUILD = pathlib.Path(os.environ.get("WEIGHTFS_BUILD", pathlib.Path(__file__).parents[2] / "build"))
SEED = int(os.environ.get("WEIGHTFS_FAULT_SEED", "1"))
LONG_ROUNDS = int(os.environ.get("WEIGHTFS_FAULT_ROUNDS", "200"))
MEMORY, WRITE, READ, SYNC, NAME, LOOK = (1 << bit for bit in range(6))
SANITIZED = "asan" in str(BUILD) or "tsan" in str(BUILD)


class Plan:
    """struct fault_plan of tests/faults/fault.h, in memory that the driver shares."""

    SIZE = 48

    def __init__(self, path):
        path.write_bytes(bytes(self.SIZE))
        with open(path, "r+b") as file:
            self.page = mmap.mmap(file.fileno(), self.SIZE)

    def arm(self, kinds, error, n=1, *, forever=False, loses=False):
        self.page[4:48] = struct.pack("<IQIIIIQQ", error, n, forever, loses, 0, 0, 0, 0)
        self.page[0:4] = struct.pack("<I", kinds)

    def disarm(self):
        self.page[0:4] = bytes(4)
        return self.hits

    @property
    def hits(self):
        return struct.unpack("<Q", self.page[40:48])[0]


@pytest.fixture
def plan(tmp_path):
    return Plan(tmp_path / "plan")


@pytest.fixture
def faulty(unmounted, plan, tmp_path, monkeypatch):
    """A mount whose driver has tests/faults/fault.c before the C library."""

    def start():
        with monkeypatch.context() as environment:
            environment.setenv("LD_PRELOAD", str(BUILD / "tests" / "faults.so"))
            environment.setenv("WEIGHTFS_FAULT_PLAN", str(tmp_path / "plan"))
            options = os.environ.get("ASAN_OPTIONS", "")
            environment.setenv("ASAN_OPTIONS", f"{options}:verify_asan_link_order=0".strip(":"))
            return unmounted.mount()

    mount = start()
    mount.start_again = start
    return mount


def fsync(path):
    """0, or the errno."""
    fd = os.open(path, os.O_RDWR)
    try:
        os.fsync(fd)
        return 0
    except OSError as error:
        return error.errno
    finally:
        os.close(fd)


def a_file_whose_fsync_failed(mount, plan):
    """The driver's own background may meet the fault first: then again."""
    for number in range(20):
        path = mount.dir / f"{number}.bin"
        write_file(path, os.urandom(300_000))
        plan.arm(SYNC, errno.EIO)
        failed = fsync(path)
        plan.disarm()
        if failed:
            assert failed == errno.EIO
            return path
    raise AssertionError("no fsync has failed")


def test_failed_fsync_is_not_taken_back(faulty, plan):
    """After an fsync that failed the next one fails, too, and status names the file; writing it anew heals it."""
    content = os.urandom(200_000)
    write_file(faulty.dir / "other.bin", content)
    path = a_file_whose_fsync_failed(faulty, plan)
    assert fsync(path) == errno.EIO
    assert faulty.reports()[f"/{path.name}"]["reason"] == "sync-failed"
    assert fsync(faulty.dir / "other.bin") == 0
    faulty.remount()
    assert fsync(path) == errno.EIO
    assert faulty.reports()[f"/{path.name}"]["state"] == "dirty"
    write_file(path, content)
    assert fsync(path) == 0
    assert not faulty.reports().get(f"/{path.name}", {}).get("reason")
    faulty.wait_sealed()
    assert read_file(path) == content


def test_log_that_is_lost(faulty, plan):
    """The disk loses the database's log: nothing is acknowledged any more, status says so, a new mount has what was."""
    content = os.urandom(200_000)
    write_file(faulty.dir / "safe.bin", content)
    assert fsync(faulty.dir / "safe.bin") == 0
    faulty.wait_sealed()
    assert fsync(faulty.dir / "safe.bin") == 0
    fd = os.open(faulty.dir / "safe.bin", os.O_RDONLY)
    assert faulty.json("status", "--json", faulty.store)["failed"] is False
    plan.arm(SYNC, errno.EIO, forever=True)
    with contextlib.suppress(OSError):  # the background may have met the fault first
        os.mkdir(faulty.dir / "directory")
    with pytest.raises(OSError) as failed:
        os.fsync(fd)
    assert failed.value.errno == errno.EIO
    plan.disarm()
    with pytest.raises(OSError) as failed:
        os.mkdir(faulty.dir / "another")
    assert failed.value.errno == errno.EIO
    assert os.pread(fd, 1 << 20, 0) == content
    os.close(fd)
    assert faulty.json("status", "--json", faulty.store)["failed"] is True
    faulty.kill()
    faulty.mount()
    assert faulty.json("status", "--json", faulty.store)["failed"] is False
    assert read_file(faulty.dir / "safe.bin") == content
    os.mkdir(faulty.dir / "another")
    assert fsync(faulty.dir / "safe.bin") == 0


def work(directory, generator, known):
    """Write, replace, read and remove, each of which may fail; `known` is what was acknowledged."""
    for _ in range(12):
        path = directory / f"{generator.randrange(6)}.bin"
        content = generator.randbytes(generator.choice([10, 5000, 70_000, 300_001]))
        before = known.pop(path, None)
        try:
            kind = generator.choice(["write", "replace", "remove", "read"])
            if kind == "write":
                write_file(path, content)
            elif kind == "replace":
                write_file(directory / ".tmp", content)
                os.rename(directory / ".tmp", path)
            elif kind == "remove":
                path.unlink(missing_ok=True)
                content = b""
            else:
                if before is not None:
                    assert read_file(path) == before, path
                content = before
        except OSError as error:
            assert error.errno in (errno.EIO, errno.ENOSPC, errno.ENOMEM, errno.EUCLEAN), error
            if kind == "read" and before is not None:
                known[path] = before
            continue
        if content:
            known[path] = content


def one_fault(mount, plan, generator):
    kinds = generator.choice([WRITE, READ, SYNC, NAME] + ([] if SANITIZED else [MEMORY]))
    error = {MEMORY: errno.ENOMEM, WRITE: generator.choice([errno.EIO, errno.ENOSPC])}.get(kinds, errno.EIO)
    known = {}
    plan.arm(kinds, error, generator.randrange(1, 25), forever=generator.random() < 0.3)
    work(mount.dir, generator, known)
    hit = plan.disarm() > 0
    if generator.random() < 0.5:
        mount.kill()
    else:
        mount.umount()
    mount.start_again()
    for path, content in known.items():
        assert read_file(path) == content, path
    for path in list(mount.dir.iterdir()):
        path.unlink()
    return hit


def sweep(mount, plan, rounds):
    generator = random.Random(SEED)
    hits = sum(one_fault(mount, plan, generator) for _ in range(rounds))
    print(f"seed {SEED}: {hits} faults met in {rounds} rounds")
    assert hits > 0
    mount.wait_sealed()


def test_some_faults(faulty, plan):
    """One of the driver's calls fails, or all from there on: an error or success, and afterwards what was acknowledged."""
    sweep(faulty, plan, 6)


@pytest.mark.endurance
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_faults(faulty, plan):
    """The same, many times."""
    sweep(faulty, plan, LONG_ROUNDS)
