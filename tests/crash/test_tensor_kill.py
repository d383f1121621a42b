"""kill -9 of the driver while tensors are written: afterwards the model is as one of the closes left it.

    WEIGHTFS_KILL_SEEDS    seeds, comma-separated (default: one)
    WEIGHTFS_KILL_ROUNDS   kills for each seed (default 10)
"""

import os
import random
import shutil
import signal
import subprocess
import threading
import time

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("safetensors.numpy")

from support.files import MIB, errno_of, write_all, write_file
from support.mounts import wait_for
from support.tensors import model, npy

SEEDS = [int(seed) for seed in os.environ.get("WEIGHTFS_KILL_SEEDS", "1").split(",")]
ROUNDS = int(os.environ.get("WEIGHTFS_KILL_ROUNDS", "10"))
LIMIT = "user.weightfs.max_shard_size"
NAMES = 8


def some(number, size=2000):
    return np.full(size, number, "<i8")


class Writer(threading.Thread):
    """Writes, replaces, renames and removes tensors of its own until the driver is gone.

    `has` maps each tensor's name to what it is since its last call returned, or
    None for one that is removed; `doubt` has, for the names of the call that
    was not answered, what else they may be.
    """

    def __init__(self, directory, number, seed):
        super().__init__(daemon=True)
        self.directory, self.number = directory, number
        self.generator = random.Random(seed)
        self.has, self.doubt, self.counter, self.problem = {}, {}, 0, None
        self.where = None

    def begin(self):
        """Through a handle of the directory: by its path all is missing, too, when the mount is gone."""
        self.doubt = {}
        self.where = os.open(self.directory / ".tensors", os.O_RDONLY | os.O_DIRECTORY)

    def run(self):
        try:
            while True:
                self.step()
        except OSError as error:
            self.error = error
        except BaseException as problem:
            self.problem = problem
        finally:
            os.close(self.where)

    def write(self, name, content, flags):
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | flags, 0o644, dir_fd=self.where)
        try:
            write_all(fd, content)
        except BaseException:
            errno_of(os.close, fd)
            raise
        os.close(fd)

    def step(self):
        self.counter += 1
        value = self.number * 10**6 + self.counter
        name, other = (f"w{self.number}.{n}" for n in self.generator.sample(range(NAMES), 2))
        kind = self.generator.choice(["write", "write", "change", "temporary", "rename", "remove", "look"])
        if kind == "write":
            self.doubt = {name: {value}}
            self.write(f"{name}.npy", npy(some(value)), os.O_TRUNC)
            self.has[name] = value
        elif kind == "change":
            self.doubt = {name: {value}}
            self.write(f"{name}.npy", npy(some(value)), 0)
            self.has[name] = value
        elif kind == "temporary":
            self.write(f".tmp{self.number}", npy(some(value)), os.O_TRUNC)
            self.doubt = {name: {value}}
            os.rename(f".tmp{self.number}", f"{name}.npy", src_dir_fd=self.where, dst_dir_fd=self.where)
            self.has[name] = value
        elif kind == "rename" and self.has.get(name) is not None:
            self.doubt = {name: {None}, other: {self.has[name]}}
            os.rename(f"{name}.npy", f"{other}.npy", src_dir_fd=self.where, dst_dir_fd=self.where)
            self.has[other], self.has[name] = self.has[name], None
        elif kind == "remove" and self.has.get(name) is not None:
            self.doubt = {name: {None}}
            os.unlink(f"{name}.npy", dir_fd=self.where)
            self.has[name] = None
        elif kind == "look":
            os.listdir(self.where)
        self.doubt = {}


def check(directory, writers):
    """Each tensor is what its writer's last call made it; of the one call that was not answered, before or after."""
    found = {}
    for name, array in model(directory).items():
        assert len(array) == 2000 and len(set(array.tolist())) == 1, f"{name} is half of each"
        found[name] = int(array[0])
    for writer in writers:
        assert writer.problem is None, writer.problem
        for number in range(NAMES):
            name = f"w{writer.number}.{number}"
            allowed = {writer.has.get(name)} | writer.doubt.get(name, set())
            assert found.get(name) in allowed, (name, found.get(name), allowed, writer.error)
            writer.has[name] = found.get(name)
    assert len(found) == sum(value is not None for writer in writers for value in writer.has.values())


def continued(writer, directory, seed):
    made = Writer(directory, writer.number, seed)
    made.has, made.counter = writer.has, writer.counter
    return made


@pytest.mark.timeout(60 + 8 * ROUNDS)
@pytest.mark.parametrize("limit", [None, b"40KB"], ids=["one-shard", "shards"])
@pytest.mark.parametrize("seed", SEEDS)
def test_kill_while_writing(mount, plain, seed, limit):
    """Two writers, and cp -r of the model beside them, killed again and again in one store."""
    directory, generator = mount.dir / "m", random.Random(seed)
    directory.mkdir()
    if limit:
        os.setxattr(directory, LIMIT, limit)
    print(f"seed {seed}, {ROUNDS} rounds")
    writers = [Writer(directory, number, 0) for number in range(2)]
    for number in range(ROUNDS):
        writers = [continued(writer, directory, (seed, number, writer.number).__hash__()) for writer in writers]
        for writer in writers:
            writer.begin()
            writer.start()
        copy = subprocess.Popen(["cp", "-r", directory, plain / f"copy{number}"], stderr=subprocess.DEVNULL)
        time.sleep(generator.uniform(0.02, 0.6))
        mount.kill()
        for writer in writers:
            writer.join(30)
            assert not writer.is_alive(), "a writer hangs on a mount whose driver is gone"
        copy.wait(30)
        mount.mount()
        check(directory, writers)
    mount.remount()
    check(directory, writers)
    shutil.rmtree(directory)
    mount.wait_sealed()
    wait_for(lambda: mount.status()["objects"] == 0, 60, "every object given back")


@pytest.mark.parametrize("look", [False, True], ids=["waiting", "in-shard"])
@pytest.mark.parametrize("flags", [os.O_TRUNC, 0], ids=["truncated", "in-place"])
def test_killed_while_a_tensor_is_changed(mount, flags, look):
    """Opened again and half written, or cut: after the kill the model is as the last close left it."""
    directory = mount.dir / "m"
    directory.mkdir()
    for name in "ab":
        write_file(directory / f".tensors/{name}.npy", npy(some(1)))
    if look:
        os.listdir(directory)
    fd = os.open(directory / ".tensors/a.npy", os.O_WRONLY | flags)
    os.write(fd, npy(some(2))[:5000])
    mount.kill()
    errno_of(os.close, fd)
    mount.mount()
    found = model(directory)
    assert sorted(found) == ["a", "b"]
    assert np.array_equal(found["a"], some(1)) and np.array_equal(found["b"], some(1))


def test_killed_with_tensors_that_wait(mount):
    """Closed and not looked at: they are there at the next mount, also of a directory that was moved."""
    for number in range(200):
        (mount.dir / f"d{number % 5}").mkdir(exist_ok=True)
        write_file(mount.dir / f"d{number % 5}/.tensors/t{number}.npy", npy(some(number)))
    os.rename(mount.dir / "d0", mount.dir / "moved")
    mount.kill()
    mount.mount("ro")
    assert np.array_equal(np.load(mount.dir / "d1/.tensors/t196.npy"), some(196))
    mount.umount()
    mount.mount()
    for number in range(200):
        where = mount.dir / ("moved" if number % 5 == 0 else f"d{number % 5}")
        assert np.array_equal(model(where)[f"t{number}"], some(number))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_files_nobody_closed(mount, number):
    """Temporary files and files that are open leave nothing behind."""
    directory = mount.dir / "m"
    directory.mkdir()
    write_file(directory / ".tensors/kept.npy", npy(some(1)))
    write_file(directory / ".tensors/.tmp123", b"x" * 4 * MIB)
    fd = os.open(directory / ".tensors/open.npy", os.O_RDWR | os.O_CREAT)
    write_all(fd, npy(some(2, 500_000)))
    if number == signal.SIGKILL:
        mount.kill()
    else:
        mount.signal(number)
    errno_of(os.close, fd)
    mount.end()
    mount.mount()
    assert sorted(model(directory)) == ["kept"]
    mount.wait_sealed()
    mount.wait_disk(2 * MIB)


def test_killed_while_cut_again(mount):
    """The limit is set while the driver dies: all tensors are there, in shards that fit the index."""
    directory = mount.dir / "m"
    directory.mkdir()
    for number in range(40):
        write_file(directory / f".tensors/t{number}.npy", npy(some(number)))
    for turn in range(6):
        thread = threading.Thread(target=cut_until_gone, args=(directory,), daemon=True)
        thread.start()
        time.sleep(0.02 + 0.05 * turn)
        mount.kill()
        thread.join(20)
        mount.mount()
        found = model(directory)
        assert sorted(found) == sorted(f"t{number}" for number in range(40))
        assert all(np.array_equal(found[f"t{number}"], some(number)) for number in range(40))


def cut_until_gone(directory):
    where = os.open(directory, os.O_RDONLY)
    try:
        for limit in [b"40KB", b"100KB", b"10MB"] * 100_000:
            os.setxattr(where, LIMIT, limit)
    except OSError:
        pass
    finally:
        os.close(where)
