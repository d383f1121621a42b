"""kill -9 of the driver at any moment, and signals that ask it to stop.

    WEIGHTFS_KILL_SEEDS    seeds, comma-separated (default: one)
    WEIGHTFS_KILL_ROUNDS   kills for each seed (default 10)
"""

import contextlib
import hashlib
import os
import random
import signal
import sqlite3
import subprocess
import threading
import time

import pytest

from support import shards
from support.files import MIB, errno_of, pwrite_all, read_file, sha256, tree_hashes, write_all, write_file
from support.mounts import data_files, is_running, wait_for

SEEDS = [int(seed) for seed in os.environ.get("WEIGHTFS_KILL_SEEDS", "1").split(",")]
ROUNDS = int(os.environ.get("WEIGHTFS_KILL_ROUNDS", "10"))
WRITERS = 4


def some_content(generator):
    """A shard whose tensors come from a small pool (so that files share), or other bytes."""
    if generator.random() < 0.5:
        pool = generator.sample(range(12), 5)
        return shards.shard({f"t{n}": random.Random(n).randbytes(40_000 + 1001 * n) for n in pool})
    return generator.randbytes(generator.choice([10, 5000, 65_536, 65_537, 700_001]))


class Writer(threading.Thread):
    """Writes, replaces and removes files of its own until the driver is gone.

    `closed` maps each name to the sha256 of what it holds, from the moment its
    last call (close, rename, unlink) returned; a name that is being changed is
    in neither state and left out.
    """

    def __init__(self, directory, seed):
        super().__init__(daemon=True)
        self.directory = directory / f"writer-{seed}"
        self.generator = random.Random(seed)
        self.closed = {}
        self.unknown = set()
        self.problem = None
        self.directory.mkdir(exist_ok=True)
        self.fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)

    def run(self):
        try:
            while True:
                self.step()
        except OSError:
            pass  # the driver was killed: what is acknowledged is in self.closed
        except BaseException as problem:
            self.problem = problem
        finally:
            os.close(self.fd)

    def step(self):
        content = some_content(self.generator)
        kind = self.generator.choice(["write", "write", "rename", "rename", "remove", "append"])
        suffix = "safetensors" if content[8:9] == b"{" and kind != "append" else "bin"
        path = self.directory / f"{self.generator.randrange(12)}.{suffix}"
        self.closed.pop(path, None)
        self.unknown.add(path)
        digest = hashlib.sha256(content).hexdigest()
        if kind == "remove":
            self.remove(path.name)
            digest = None
        elif kind == "append":
            self.append(path, content)
            digest = sha256(path)
        elif kind == "rename":
            temporary = self.directory / f".tmp{self.generator.randrange(10**6)}"
            write_file(temporary, content)
            os.rename(temporary, path)
        else:
            write_file(path, content)
        self.unknown.discard(path)
        if digest:
            self.closed[path] = digest

    def remove(self, name):
        """Through a handle: by its path a name is missing, too, when the mount is gone."""
        try:
            os.unlink(name, dir_fd=self.fd)
        except FileNotFoundError:
            pass

    def append(self, path, content):
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            write_all(fd, content)
        finally:
            os.close(fd)


def check(writers):
    """Every file that was closed is there and right; every name that was removed is gone."""
    for writer in writers:
        assert writer.problem is None, writer.problem
        for path, digest in writer.closed.items():
            assert sha256(path) == digest, path
        known = writer.closed.keys() | writer.unknown
        for path in writer.directory.iterdir():
            assert path in known or path.name.startswith(".tmp"), path


def database_bytes(store):
    """Bytes of the database that are in use; SQLite keeps free pages for what comes next."""
    with sqlite3.connect(f"file:{store / 'weightfs.db'}?mode=ro", uri=True) as db:
        pages, free, size = (db.execute(f"PRAGMA {name}").fetchone()[0]
                             for name in ("page_count", "freelist_count", "page_size"))
    db.close()
    return (pages - free) * size


def one_round(mount, generator, number):
    writers = [Writer(mount.dir, number * WRITERS + index) for index in range(WRITERS)]
    for writer in writers:
        writer.start()
    time.sleep(generator.uniform(0.02, 1.2))
    mount.kill()
    for writer in writers:
        writer.join(30)
        assert not writer.is_alive(), "a writer hangs on a mount whose driver is gone"
    mount.mount()
    check(writers)


@pytest.mark.timeout(60 + 8 * ROUNDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_kill_while_writing(mount, seed):
    """What was closed, renamed or removed before the kill stays so; nothing stays behind.

    Each round goes on in the store that the last one left. After the last one
    all is removed: the store must then be as small as an empty one.
    """
    generator = random.Random(seed)
    print(f"seed {seed}, {ROUNDS} rounds")
    for number in range(ROUNDS):
        one_round(mount, generator, number)
        if number % 3 == 2:
            mount.wait_sealed()
    before = tree_hashes(mount.dir)
    mount.wait_sealed()
    mount.remount()
    assert tree_hashes(mount.dir) == before
    for directory in list(mount.dir.iterdir()):
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()
    status = mount.wait_sealed()
    assert status["files"] == 0
    wait_for(lambda: mount.status()["objects"] == 0, 60, "every object given back")
    mount.umount()
    assert data_files(mount.store) == []
    assert database_bytes(mount.store) < MIB


def test_kill_while_sealing(mount):
    """Killed again and again while large files are hashed and shared: all of them right in the end."""
    content = random.Random(3).randbytes(24 * MIB)
    names = [mount.dir / f"{n}.bin" for n in range(4)]
    for path in names:
        write_file(path, content)
    for delay in (0.3, 0.33, 0.36, 0.4, 0.5):
        time.sleep(delay)
        mount.kill()
        mount.mount()
    mount.wait_sealed()
    assert all(read_file(path) == content for path in names)
    assert mount.disk() < 30 * MIB


def test_kill_while_giving_space_back(mount):
    """Removed, then killed: the space is given back by the next mount."""
    empty = mount.disk()
    for number in range(6):
        write_file(mount.dir / f"{number}.bin", random.Random(number).randbytes(4 * MIB))
    mount.wait_sealed()
    for number in range(6):
        (mount.dir / f"{number}.bin").unlink()
        mount.kill()
        mount.mount()
        assert len(os.listdir(mount.dir)) == 5 - number
    mount.wait_disk(empty + 2 * MIB)


@pytest.mark.root_only
@pytest.mark.parametrize("name", ["open.bin", "open.safetensors"])
def test_file_closed_off_at_the_kill(mount, name):
    """A driver that dies, or loses its power, while a clone takes the place of a file leaves that file immutable."""
    with open(mount.dir / name, "wb") as f:
        mount.kill()
        with contextlib.suppress(OSError):
            f.close()
    for path in data_files(mount.store):
        if subprocess.run(["chattr", "+i", path], capture_output=True).returncode:
            pytest.skip("the disk has no immutable flag")
    try:
        mount.mount()
        write_file(mount.dir / name, shards.valid())
        mount.remount()
        assert read_file(mount.dir / name) == shards.valid()
        mount.umount()
        for path in data_files(mount.store):
            assert "i" not in subprocess.run(["lsattr", path], capture_output=True, text=True).stdout.split()[0]
    finally:
        subprocess.run(["chattr", "-R", "-i", mount.store / "data"], capture_output=True)


def test_open_files_at_the_kill(mount):
    """Bytes that were written but not closed are there too: the process died, not the machine."""
    content = random.Random(4).randbytes(3 * MIB)
    fd = os.open(mount.dir / "open.bin", os.O_RDWR | os.O_CREAT)
    pwrite_all(fd, content, 0)
    mount.kill()
    errno_of(os.close, fd)
    mount.mount()
    assert read_file(mount.dir / "open.bin") == content


def test_unlinked_open_files_at_the_kill(mount):
    """A file that was unlinked and still open when the driver died does not stay behind."""
    fds = []
    for number in range(5):
        path = mount.dir / f"{number}.bin"
        write_file(path, random.Random(number).randbytes(2 * MIB))
        if number % 2:
            mount.wait_sealed()
        fds.append(os.open(path, os.O_RDWR))
        path.unlink()
    mount.kill()
    for fd in fds:
        errno_of(os.close, fd)
    assert mount.status()["last_recovery"] is None
    mount.mount()
    status = mount.wait_sealed()
    assert status["files"] == 0
    assert status["last_recovery"]["unlinked"] == 5
    assert (status["last_recovery"]["dirty"], status["last_recovery"]["reported"]) == (0, 0)
    assert "recovery" in mount.run("status", mount.store).stdout
    mount.wait_disk(2 * MIB)


def test_sealed_file_written_at_the_kill(mount):
    """A sealed file that was being changed in place: every write that returned is there."""
    content = bytearray(random.Random(5).randbytes(8 * MIB))
    path = mount.dir / "changed.bin"
    write_file(path, content)
    mount.wait_sealed()
    fd = os.open(path, os.O_RDWR)
    for at in range(0, 8 * MIB, MIB):
        pwrite_all(fd, b"changed", at)
        content[at:at + 7] = b"changed"
    mount.kill()
    errno_of(os.close, fd)
    mount.mount()
    assert read_file(path) == content


def test_fsck_after_a_kill_and_an_orderly_unmount(mount):
    """Mount and unmount once after a kill, and fsck has nothing to say; the store is marked clean."""
    write_file(mount.dir / "file.bin", b"x" * MIB)
    mount.kill()
    mount.mount()
    mount.umount()
    mount.assert_clean()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop(mount, number):
    """SIGTERM and SIGINT: everything sealed, unmounted, the process gone, and all there at the next mount."""
    contents = {f"{n}.bin": random.Random(n).randbytes(MIB + n) for n in range(5)}
    contents["model.safetensors"] = shards.valid(3, 200_000)
    for name, content in contents.items():
        write_file(mount.dir / name, content)
    mount.signal(number)
    assert not mount.mounted
    status = mount.status()
    assert (status["dirty"], status["mounted"], status["files"]) == (0, False, len(contents))
    mount.assert_clean()
    mount.mount()
    for name, content in contents.items():
        assert read_file(mount.dir / name) == content


def test_asked_to_stop_while_in_use(mount):
    """SIGTERM with files open: the driver ends within its time, nothing closed is lost."""
    write_file(mount.dir / "closed.bin", b"closed" * 20_000)
    fd = os.open(mount.dir / "open.bin", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"open")
    mount.signal(signal.SIGTERM)
    errno_of(os.close, fd)
    mount.end()
    mount.mount()
    assert read_file(mount.dir / "closed.bin") == b"closed" * 20_000
    assert read_file(mount.dir / "open.bin") == b"open"


def test_mounted_again_over_the_dead_mount(mount):
    """After a kill, the same mount command works at once: it detaches what is left of the old mount."""
    write_file(mount.dir / "kept.bin", b"kept" * 1000)
    mount.dir.stat()  # from here on the kernel answers this by itself
    os.kill(mount.pid, signal.SIGKILL)
    wait_for(lambda: not is_running(mount.pid), 60, "the killed driver's end")
    mount.mount()
    assert read_file(mount.dir / "kept.bin") == b"kept" * 1000
    mounts = [line for line in open("/proc/self/mountinfo") if str(mount.dir) in line]
    assert len(mounts) == 1
