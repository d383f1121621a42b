"""The power is cut under load: what was promised to survive does, and nothing is silently wrong.

    WEIGHTFS_POWER_SEEDS    seeds, comma-separated (default: one)
    WEIGHTFS_POWER_ROUNDS   cuts for each seed in the long form (default 100)
"""

import errno
import hashlib
import io
import os
import random
import threading
import time

import pytest

np = pytest.importorskip("numpy")
safetensors_numpy = pytest.importorskip("safetensors.numpy")

from support import shards
from support.files import KIB, MIB, pwrite_all, random_bytes, read_file, sha256, write_all, write_file
from support.power import Disk, Power, disks

pytestmark = pytest.mark.root_only

SEEDS = [int(seed) for seed in os.environ.get("WEIGHTFS_POWER_SEEDS", "1").split(",")]
ROUNDS = int(os.environ.get("WEIGHTFS_POWER_ROUNDS", "100"))
SHORT_ROUNDS = 2
WRITERS = 4
NAMES = 10
TENSORS = 6
DISK_BYTES = 1024 * MIB
LIMIT_KEPT = 40 * MIB  # of one writer's files: they are removed beyond it


@pytest.fixture(params=disks("ext4", "xfs"))
def power(request, unmounted, tmp_path):
    """A store on a disk of each kind, mounted."""
    found = Power(unmounted, Disk(request.param, tmp_path, DISK_BYTES))
    found.boot()
    yield found
    found.end()


def digest(content):
    return hashlib.sha256(content).hexdigest()


def some_shard(generator):
    """Its tensors come from a small pool, so that files share."""
    pool = generator.sample(range(12), 5)
    return shards.shard({f"t{n}": random.Random(n).randbytes(40_000 + 1001 * n) for n in pool})


def some_content(generator):
    if generator.random() < 0.5:
        return some_shard(generator)
    return generator.randbytes(generator.choice([10, 5000, 65_536, 65_537, 700_001, 3 * MIB + 5]))


class Name:
    """What a name may hold after a cut.

    `versions` are the sha256 of what it held (None: it was not there), from the
    last one that was promised to survive on, the one that a call was about to make
    included. `whole`: each of them but the first came by rename, so that it is there
    whole or not at all.
    """

    def __init__(self, first=None):
        self.versions, self.whole = [first], True

    def change(self, version, *, whole):
        self.versions.append(version)
        self.whole = self.whole and whole

    def durable(self, power):
        """The present one is promised; none before it may be seen again.

        What returns while the disk is being shut down promises nothing: a
        journal that is aborted in the middle of an fsync can let it succeed,
        and after a real cut nobody would have heard of it.
        """
        if power.is_cut:
            raise OSError(errno.EIO, "the power was cut")
        self.versions, self.whole = self.versions[-1:], True

    def after_cut(self, found):
        self.versions, self.whole = [found], True


class UntilCut(threading.Thread):
    """Takes one step after another until the disk is gone; `problem` is whatever else ended it."""

    def __init__(self, power, directory, seed):
        super().__init__(daemon=True)
        self.power, self.directory, self.generator = power, directory, random.Random(seed)
        self.problem, self.steps = None, []

    def run(self):
        try:
            while True:
                self.step()
        except OSError as error:
            if not self.power.is_cut:
                self.problem = error
        except BaseException as problem:
            self.problem = problem
        finally:
            for fd in self.fds:
                os.close(fd)


class Writer(UntilCut):
    """Changes names of its own, and notes what each may hold after a cut, until the disk is gone."""

    def __init__(self, power, directory, seed):
        super().__init__(power, directory, seed)
        self.names, self.contents = {}, {}

    def begin(self):
        """For a round: threads cannot be started twice."""
        again = Writer(self.power, self.directory, self.generator.getrandbits(60))
        again.names, again.contents = self.names, self.contents
        again.fd = os.open(again.directory, os.O_RDONLY | os.O_DIRECTORY)
        again.fds = [again.fd]
        again.start()
        return again

    def step(self):
        kind = self.generator.choice(
            ["save", "save", "save", "write", "write", "append", "rewrite", "rewrite", "truncate", "unlink", "clone",
             "move", "fsync", "fsync", "directory", "osync", "pause"])
        self.steps.append(kind)
        getattr(self, f"do_{kind}")()

    # ---- what it knows ----

    def name(self, key):
        return self.names.setdefault(key, Name())

    def some_key(self):
        return f"{self.generator.randrange(NAMES)}.{self.generator.choice(['bin', 'safetensors'])}"

    def some_there(self):
        there = [key for key in sorted(self.contents) if self.contents[key] is not None]
        return self.generator.choice(there) if there else None

    def will_be(self, key, content, *, whole=False):
        """To be called before the call that makes it so."""
        self.name(key).change(None if content is None else digest(content), whole=whole)
        self.steps.append((key, self.name(key).versions[-1], whole))

    def is_now(self, key, content):
        self.contents[key] = content

    def content_for(self, key):
        """A shard's name gets a valid shard, so that no gate is in the way."""
        return some_shard(self.generator) if key.endswith("safetensors") else some_content(self.generator)

    def open(self, key, flags):
        return os.open(key, flags, 0o644, dir_fd=self.fd)

    # ---- what it does ----

    def do_save(self):
        """As savers do: a temporary file, maybe made durable, renamed, maybe its directory made durable."""
        key = self.some_key()
        content = self.content_for(key)
        temporary = f".tmp{self.generator.randrange(10**6)}"
        syncs, while_open = self.generator.random() < 0.3, self.generator.random() < 0.5
        fd = self.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            write_all(fd, content)
            if syncs:
                os.fsync(fd)
            if not while_open:
                os.close(fd)
                fd = -1
            self.will_be(key, content, whole=syncs or self.contents.get(key) is not None)
            os.rename(temporary, key, src_dir_fd=self.fd, dst_dir_fd=self.fd)
            self.is_now(key, content)
        finally:
            if fd >= 0:
                self.close(fd)
        if self.generator.random() < 0.3:
            os.fsync(self.fd)
            self.names_are_durable(syncs and key)

    def close(self, fd):
        try:
            os.close(fd)
        except OSError:
            pass

    def names_are_durable(self, fsynced_key=None):
        """fsync of the directory: every name in it, and the bytes of those that came by rename over others."""
        for name in self.names.values():
            if name.whole:
                name.durable(self.power)
            elif name.versions[-1] is not None and not self.power.is_cut:
                name.versions = [version for version in name.versions if version is not None]
        if fsynced_key:
            self.names[fsynced_key].durable(self.power)

    def do_write(self):
        key = self.some_key()
        content = self.content_for(key)
        fd = self.open(key, os.O_WRONLY | os.O_CREAT)
        try:
            self.will_be(key, content)
            os.ftruncate(fd, 0)
            write_all(fd, content)
        finally:
            self.close(fd)
        self.is_now(key, content)

    def change(self, key, content, function):
        fd = self.open(key, os.O_RDWR)
        try:
            self.will_be(key, content)
            function(fd)
            self.is_now(key, content)
            if self.generator.random() < 0.3:
                os.fsync(fd)
                self.names[key].durable(self.power)
        finally:
            self.close(fd)

    def do_append(self):
        key = self.some_there()
        if key is None or key.endswith("safetensors"):
            return
        tail = self.generator.randbytes(self.generator.choice([7, 5000, 100_000]))
        self.change(key, self.contents[key] + tail,
                    lambda fd: (os.lseek(fd, 0, os.SEEK_END), write_all(fd, tail)))

    def do_rewrite(self):
        """In place: a sealed file becomes staging again, alone or by a copy."""
        key = self.some_there()
        if key is None or key.endswith("safetensors") or len(self.contents[key]) < 100:
            return
        content = bytearray(self.contents[key])
        at = self.generator.randrange(len(content) - 50)
        part = self.generator.randbytes(self.generator.randrange(1, min(len(content) - at, 30_000)))
        content[at:at + len(part)] = part
        self.change(key, bytes(content), lambda fd: pwrite_all(fd, part, at))

    def do_truncate(self):
        key = self.some_there()
        if key is None or key.endswith("safetensors"):
            return
        size = self.generator.randrange(len(self.contents[key]) + 1)
        self.change(key, self.contents[key][:size], lambda fd: os.ftruncate(fd, size))

    def do_unlink(self):
        key = self.some_there()
        if key is not None:
            self.will_be(key, None, whole=True)
            os.unlink(key, dir_fd=self.fd)
            self.is_now(key, None)

    def do_move(self):
        """A rename to a name that is not there."""
        key, to = self.some_there(), self.some_key()
        if key is None or self.contents.get(to) is not None or key.split(".")[1] != to.split(".")[1]:
            return
        content, whole = self.contents[key], self.names[key].whole
        self.will_be(to, content, whole=whole)
        self.will_be(key, None, whole=True)
        os.rename(key, to, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        self.is_now(to, content)
        self.is_now(key, None)

    def do_clone(self):
        key, to = self.some_there(), self.some_key()
        if key is None or key == to or key.split(".")[1] != to.split(".")[1]:
            return
        content = self.contents[key]
        source, target = self.open(key, os.O_RDONLY), -1
        try:
            self.will_be(to, content)
            target = self.open(to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            done = 0
            while done < len(content):
                step = os.copy_file_range(source, target, len(content) - done, done, done)
                assert step > 0 or self.power.is_cut, f"{key} ends at {done} of {len(content)} bytes"
                if step == 0:
                    raise OSError(errno.EIO, "the power was cut")
                done += step
        finally:
            self.close(source)
            if target >= 0:
                self.close(target)
        self.is_now(to, content)

    def do_fsync(self):
        key = self.some_there()
        if key is None:
            return
        fd = self.open(key, os.O_RDONLY)
        try:
            os.fsync(fd) if self.generator.random() < 0.5 else os.fdatasync(fd)
        finally:
            self.close(fd)
        self.names[key].durable(self.power)

    def do_directory(self):
        os.fsync(self.fd)
        self.names_are_durable()

    def do_osync(self):
        """With O_SYNC or O_DSYNC each write that returned survives."""
        key = self.some_key()
        content = self.content_for(key)
        self.will_be(key, b"")
        fd = self.open(key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | self.generator.choice([os.O_SYNC, os.O_DSYNC]))
        try:
            self.will_be(key, content)
            write_all(fd, content)
            self.names[key].durable(self.power)
        finally:
            self.close(fd)
        self.is_now(key, content)

    def do_pause(self):
        """Long enough, now and then, that something is sealed."""
        time.sleep(self.generator.choice([0.01, 0.1, 0.6]))


class Tensors(UntilCut):
    """Writes tensors of a model of its own through .tensors; `has` is what each may be, oldest first."""

    def __init__(self, power, directory, seed):
        super().__init__(power, directory, seed)
        self.has, self.counter = {}, 0

    def begin(self):
        again = Tensors(self.power, self.directory, self.generator.getrandbits(60))
        again.has, again.counter = self.has, self.counter
        again.fd = os.open(again.directory, os.O_RDONLY | os.O_DIRECTORY)
        again.where = os.open(".tensors", os.O_RDONLY | os.O_DIRECTORY, dir_fd=again.fd)
        again.fds = [again.where, again.fd]
        again.start()
        return again

    def step(self):
        self.counter += 1
        name = f"t{self.generator.randrange(TENSORS)}"
        out = io.BytesIO()
        np.save(out, np.full(40_000, self.counter, "<i8"))
        self.has.setdefault(name, [None]).append(self.counter)
        fd = os.open(f"{name}.npy", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644, dir_fd=self.where)
        try:
            write_all(fd, out.getvalue())
        finally:
            os.close(fd)
        if self.generator.random() < 0.2:
            os.fsync(self.fd)
            if self.power.is_cut:
                return
            self.has = {key: values[-1:] for key, values in self.has.items()}
        time.sleep(self.generator.choice([0, 0, 0.1, 0.5]))

    def check(self):
        """Each tensor is one of those that it may be, and all of it."""
        assert self.problem is None, self.problem
        path = self.directory / "model.safetensors"
        found = safetensors_numpy.load_file(path) if path.exists() else {}
        for name, array in found.items():
            assert len(array) == 40_000 and len(set(array.tolist())) == 1, f"{name} is half of each"
        for name, allowed in self.has.items():
            value = int(found[name][0]) if name in found else None
            assert value in allowed, (name, value, allowed, self.power.mount.log()[-3000:])
            self.has[name] = [value]


def reason_of(path):
    try:
        return os.getxattr(path, "user.weightfs.error").decode()
    except OSError:
        return None


def check_name(writer, key, reports):
    """What is found is one of the versions; or, where bytes may be missing, it is reported."""
    path, name = writer.directory / key, writer.name(key)
    context = (key, name.versions, name.whole)
    print(*context, [step for step in writer.steps if isinstance(step, str) or key in step][-80:])
    if os.path.lexists(path):
        print(writer.power.describe(path.stat().st_ino))
    if not os.path.lexists(path):
        assert None in name.versions, ("lost", *context)
        name.after_cut(None)
        writer.is_now(key, None)
        return
    reason = reason_of(path)
    shown = f"/{writer.directory.name}/{key}"
    try:
        content = read_file(path)
    except OSError as error:
        assert reason and shown in reports, (f"cannot be read: {error}", *context)
        content = None
    if content is None or digest(content) not in name.versions:
        assert not name.whole, ("not whole", content and len(content), reason, *context)
        assert reason and shown in reports, ("silently wrong", content and len(content), *context)
        path.unlink()
        name.after_cut(None)
        writer.is_now(key, None)
        return
    name.after_cut(digest(content))
    writer.is_now(key, content)


def check(power, writers, tensors, kept):
    reports = power.mount.reports()
    for writer in writers:
        assert writer.problem is None, writer.problem
        for key in sorted(writer.names):
            check_name(writer, key, reports)
        for path in writer.directory.iterdir():
            assert path.name in writer.names or path.name.startswith(".tmp"), path
            if path.name.startswith(".tmp"):
                path.unlink()
    for path, wanted in kept.items():
        assert sha256(path) == wanted, path
    tensors.check()


def keep_some(directory):
    """Files that nobody changes, sealed, some of them sharing bytes with what the writers write; and copies of them."""
    directory.mkdir()
    kept = {}
    for number in range(4):
        for suffix, content in (("bin", random_bytes(number, 300 * KIB)), ("safetensors", shards.valid(number, 60_000))):
            path = directory / f"{number}.{suffix}"
            write_file(path, content)
            kept[path] = digest(content)
    return kept


def cut_rounds(power, seed, rounds):
    generator = random.Random(seed)
    root = power.mount.dir
    kept = keep_some(root / "kept")
    writers = [Writer(power, root / f"writer-{n}", generator.getrandbits(60)) for n in range(WRITERS)]
    tensors = Tensors(power, root / "model", generator.getrandbits(60))
    for one in [*writers, tensors]:
        one.directory.mkdir()
    power.mount.wait_sealed()
    os.sync()
    fd = os.open(root, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    for number in range(rounds):
        print(f"round {number}")
        writers, tensors = [writer.begin() for writer in writers], tensors.begin()
        time.sleep(generator.uniform(0.1, 2.0))
        power.cut(generator)
        for one in [*writers, tensors]:
            one.join(30)
            assert not one.is_alive(), f"a writer hangs on a mount whose disk is gone, after {one.steps[-3:]}"
        power.restore(generator.choice(["passthrough=auto", "passthrough=off"]))
        check(power, writers, tensors, kept)


@pytest.mark.timeout(120 + 30 * SHORT_ROUNDS)
def test_power_cut(power):
    """What was fsynced is there; what replaced something is it or the old; nothing else is silently wrong."""
    cut_rounds(power, SEEDS[0], SHORT_ROUNDS)


@pytest.mark.endurance
@pytest.mark.long
@pytest.mark.timeout(120 + 30 * ROUNDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_power_cut_long(power, seed):
    """The same, for long."""
    cut_rounds(power, seed, ROUNDS)
