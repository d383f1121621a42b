"""Views while things change: they follow the model, who has one open keeps its bytes, and nothing is left behind."""

import collections
import contextlib
import errno
import mmap
import os
import shutil
import subprocess
import threading
import time

import pytest

from support.files import MIB, at_once, errno_of, random_bytes, read_file, tree_hashes, write_file
from support.mounts import wait_for
from support.shards import shard

SMALL, LARGE = 700, 300_000  # bytes of a tensor: a file in the database, one of its own
NAMES = "abcd"
VIEWS = [".tensors/b.npy", ".tensors/b.safetensors", ".shards/single/model.safetensors"]


def content(seed, size=LARGE, names=NAMES):
    return shard({name: random_bytes(seed + number, size) for number, name in enumerate(names)})


def tensor(seed, size=LARGE):
    """The bytes of tensor "b"."""
    return random_bytes(seed + 1, size)


def truncated(path, data):
    write_file(path, data)


def renamed(path, data):
    write_file(path.with_name("new.safetensors"), data)
    os.rename(path.with_name("new.safetensors"), path)


def removed_first(path, data):
    os.unlink(path)
    write_file(path, data)


def in_place(path, data):
    """As torch.distributed and others do: written over what is there."""
    with open(path, "r+b", buffering=0) as f:
        f.write(data)


@pytest.fixture
def model(mount):
    path = mount.dir / "model"
    path.mkdir()
    write_file(path / "config.json", b"{}")
    return path


class Reader:
    """Somebody who has a view open, and one who has it mapped."""

    def __init__(self, path):
        self.fd = os.open(path, os.O_RDONLY)
        self.direct = os.open(path, os.O_RDONLY | os.O_DIRECT)
        self.content = os.pread(self.fd, 1 << 30, 0)
        self.mapping = mmap.mmap(self.fd, 0, prot=mmap.PROT_READ)

    def assert_same(self):
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        for fd in (self.direct, self.fd):
            assert os.pread(fd, 1 << 30, 0) == self.content
            assert os.fstat(fd).st_size == len(self.content)
        assert self.mapping[:] == self.content

    def close(self):
        self.mapping.close()
        os.close(self.fd)
        os.close(self.direct)


def no_dirty(mount):
    wait_for(lambda: mount.status()["dirty"] == 0, 60, "everything sealed")


def space_comes_back(mount, seconds=10):
    """Nothing is stored, and nothing waits to be given back."""
    wait_for(lambda: mount.status()["stored_bytes"] == mount.status()["pending_bytes"] == 0, seconds, "the space")


# ---- the model is saved again ----

@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("save", [truncated, renamed, removed_first, in_place])
def test_saved_again(mount, model, save, size):
    """New bytes at once, in every view; who has the old ones open or mapped reads them to the end."""
    write_file(model / "model.safetensors", content(0, size))
    readers = []
    with contextlib.ExitStack() as stack:
        for seed in (10, 20, 30):
            for view in VIEWS:
                readers.append(Reader(model / view))
                stack.callback(readers[-1].close)
            if seed == 20:
                no_dirty(mount)
            save(model / "model.safetensors", content(seed, size))
            assert read_file(model / ".tensors/b.npy")[128:] == tensor(seed, size)
            assert read_file(model / ".tensors/b.safetensors").endswith(tensor(seed, size))
            assert read_file(model / ".shards/single/model.safetensors") == content(seed, size)
            assert read_file(model / ".shards/1/model-00002-of-00004.safetensors").endswith(tensor(seed, size))
            for reader in readers:
                reader.assert_same()
        no_dirty(mount)
        for reader in readers:
            reader.assert_same()


def test_other_tensors(mount, model):
    """Saved with other names, sizes and shards: what is gone is gone, what is new is there."""
    write_file(model / "model.safetensors", content(0, SMALL))
    assert sorted(os.listdir(model / ".tensors")) == ["a.npy", "b.npy", "c.npy", "d.npy"]
    write_file(model / "model.safetensors", content(0, 2 * SMALL, "bx"))
    assert sorted(os.listdir(model / ".tensors")) == ["b.npy", "x.npy"]
    assert os.stat(model / ".tensors/b.npy").st_size == 128 + 2 * SMALL
    assert errno_of(os.stat, model / ".tensors/a.npy") == errno.ENOENT
    write_file(model / "model-00001-of-00002.safetensors", content(0, SMALL, "y"))
    os.rename(model / "model.safetensors", model / "model-00002-of-00002.safetensors")
    assert sorted(os.listdir(model / ".tensors")) == ["b.npy", "x.npy", "y.npy"]
    os.rename(model, mount.dir / "moved")
    assert sorted(os.listdir(mount.dir / "moved/.tensors")) == ["b.npy", "x.npy", "y.npy"]
    os.unlink(mount.dir / "moved/model-00002-of-00002.safetensors")
    assert os.listdir(mount.dir / "moved/.tensors") == ["y.npy"]
    os.unlink(mount.dir / "moved/model-00001-of-00002.safetensors")
    assert os.listdir(mount.dir / "moved/.tensors") == os.listdir(mount.dir / "moved/.shards") == []
    assert errno_of(os.listdir, mount.dir / "moved/.shards/single") == errno.ENOENT


def test_listed_again(model):
    """Who has a view's directory open and lists it again sees what is in it now."""
    write_file(model / "model.safetensors", content(0, SMALL, "ab"))
    fd = os.open(model / ".tensors", os.O_RDONLY)
    first = os.listdir(fd)
    write_file(model / "model.safetensors", content(0, SMALL, "bc"))
    second = os.listdir(fd)
    os.close(fd)
    assert (sorted(first), sorted(second)) == (["a.npy", "b.npy"], ["b.npy", "c.npy"])


def test_other_files(model):
    """What a cut shows of the other files is as they are now: new, changed, grown and removed ones."""
    write_file(model / "model.safetensors", content(0, SMALL))
    cut = model / ".shards/1KB"
    reader = os.open(cut / "config.json", os.O_RDONLY)
    for data in (b"{ }", b"[[]]", b"x" * 200_000, b""):
        write_file(model / "config.json", data)
        assert read_file(cut / "config.json") == os.pread(reader, 1 << 20, 0) == data
        assert os.stat(cut / "config.json").st_size == len(data)
    with open(model / "config.json", "ab", buffering=0) as log:
        for number in range(20):
            log.write(b"line %d\n" % number)
            assert os.pread(reader, 1 << 20, 0) == read_file(model / "config.json")
    os.close(reader)
    write_file(model / "new.txt", b"1")
    os.unlink(model / "config.json")
    assert {"new.txt"} <= set(os.listdir(cut)) and not (cut / "config.json").exists()


def test_attributes_follow(model):
    """chmod, touch and chown of a shard are seen in the views, also when they were looked at before."""
    write_file(model / "model.safetensors", content(0, SMALL))
    for view in VIEWS:
        os.stat(model / view)
    os.chmod(model / "model.safetensors", 0o600)
    os.utime(model / "model.safetensors", ns=(10**18, 10**18))
    for view in VIEWS:
        info = os.stat(model / view)
        assert (info.st_mode & 0o7577, info.st_mtime_ns) == (0o400, 10**18)


# ---- somebody writes the model ----


def test_open_for_writing(mount, model):
    """A shard that somebody writes is left out, and .tensors says so; it is there again when he is done."""
    write_file(model / "model.safetensors", content(0))
    with open(model / "model.safetensors", "r+b", buffering=0) as writer:
        writer.write(content(0)[:8])
        assert os.listdir(model / ".tensors") == []
        assert b"written" in os.getxattr(model / ".tensors", "user.weightfs.error")
        assert errno_of(os.stat, model / ".shards/single/model.safetensors") in (errno.ENOENT, errno.EBUSY)
    assert read_file(model / ".tensors/b.npy")[128:] == tensor(0)
    assert read_file(model / ".shards/single/model.safetensors") == content(0)


@pytest.mark.parametrize("mapped", [False, True])
def test_written_while_open(mount, model, mapped):
    """Who has opened a view reads on what he began with, whatever a writer of the shard does."""
    path = model / "model.safetensors"
    write_file(path, content(0))
    with contextlib.ExitStack() as stack:
        readers = [Reader(model / view) for view in VIEWS]
        for reader in readers:
            stack.callback(reader.close)
        with open(path, "r+b", buffering=0) as writer:
            if mapped:
                with mmap.mmap(writer.fileno(), 0) as mapping:
                    mapping[:] = content(10)
            else:
                writer.write(content(10)[:-1])
            for reader in readers:
                reader.assert_same()
            writer.truncate(100)
            for reader in readers:
                reader.assert_same()
            writer.seek(0)
            writer.write(content(20))
            for reader in readers:
                reader.assert_same()
        no_dirty(mount)
        for reader in readers:
            reader.assert_same()
        assert read_file(model / ".tensors/b.npy")[128:] == tensor(20)


def numbered(number):
    """A file whose every tensor says which save it is of."""
    return shard({name: number.to_bytes(4, "little") * 15_000 for name in NAMES})


def slowly(path, data):
    with open(path, "wb", buffering=0) as f:
        for at in range(0, len(data), 50_000):
            f.write(data[at:at + 50_000])


@contextlib.contextmanager
def saved_again_and_again(save, path):
    write_file(path, numbered(0))
    stop = threading.Event()

    def write():
        number = 0
        while not stop.wait(0.02):
            number += 1
            save(path, numbered(number))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join()


def is_of_one_save(view, data):
    tail = data[-60_000:]
    return tail == tail[:4] * 15_000 and (".tensors" in view or data == numbered(int.from_bytes(tail[:4], "little")))


def read_again_and_again(model):
    """What came of reading: {errno or True (right) or False (wrong bytes): times}."""
    found, end = collections.Counter(), time.monotonic() + 0.7
    while time.monotonic() < end:
        for view in VIEWS:
            try:
                found[is_of_one_save(view, read_file(model / view))] += 1
            except OSError as error:
                found[error.errno] += 1
    return found


@pytest.mark.parametrize("save", [renamed, truncated, slowly, in_place])
def test_being_written(mount, model, save):
    """Read by two processes while it is saved again and again: all of one save, or an error; and right in the end."""
    with saved_again_and_again(save, model / "model.safetensors"):
        found = sum(at_once(2, lambda _: read_again_and_again(model)), collections.Counter())
    assert found[True] > 0 and found[False] == 0, found
    assert set(found) <= {True, False, errno.ENOENT, errno.EBUSY}, found  # not complete at that moment
    assert save is not renamed or set(found) == {True}, found
    mount.wait_sealed()
    assert read_file(model / ".shards/single/model.safetensors") == read_file(model / "model.safetensors")


def test_while_it_is_sealed(mount, model):
    """From the moment that a large shard is closed its views can be opened, whatever the background does with it."""
    data, found = bytearray(random_bytes(1, MIB) * 60), collections.Counter()
    for wait in (0.3, 0.35):
        data[:8] = random_bytes(int(wait * 100), 8)
        write_file(model / "model.safetensors", shard({"b": data}))
        time.sleep(wait)
        for _ in range(30):
            found[errno_of(lambda: os.close(os.open(model / ".tensors/b.npy", os.O_RDONLY)))] += 1
            time.sleep(0.005)
        no_dirty(mount)
    assert set(found) == {0}, found


def test_reopened(mount, model):
    """A view that is open can be opened again by its descriptor, as /dev/stdin is, while the model is the same."""
    write_file(model / "model.safetensors", content(0, SMALL))
    mount.wait_sealed()
    with open(model / ".tensors/b.npy", "rb") as f:
        again = f"/proc/self/fd/{f.fileno()}"
        assert read_file(again).endswith(tensor(0, SMALL))
        for number in range(40):
            (mount.dir / f"{number}").mkdir()
            assert os.listdir(mount.dir / f"{number}/.tensors") == []
        assert read_file(again).endswith(tensor(0, SMALL))


@pytest.mark.root_only
def test_read_only_disk(mount, model, tmp_path):
    """A store on a disk that cannot be written, with a shard that was dirty when its driver was killed."""
    write_file(model / "model.safetensors", content(0))
    mount.kill()
    disk = tmp_path / "read-only"
    disk.mkdir()
    subprocess.run(["mount", "--bind", mount.store, disk], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", disk], check=True)
        mount.run("mount", disk, mount.dir, "-o", "ro")
        try:
            found = errno_of(read_file, model / ".tensors/b.npy"), sorted(os.listdir(model / ".tensors"))
        finally:
            mount.run("umount", mount.dir)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)  # the driver may need a moment to end
    assert found == (0, ["a.npy", "b.npy", "c.npy", "d.npy"])


# ---- what is left ----


def test_removed_while_open(mount, model):
    """The model is removed while its views are open and mapped: they are read to the end, then the space comes back."""
    write_file(model / "model.safetensors", content(0))
    mount.wait_sealed()
    readers = [Reader(model / view) for view in [*VIEWS, ".shards/1/model-00002-of-00004.safetensors"]]
    directories = [os.open(model / name, os.O_RDONLY) for name in (".", ".tensors", ".shards", ".shards/1")]
    shutil.rmtree(model)
    write_file(mount.dir / "other", random_bytes(77, 3 * MIB))
    no_dirty(mount)
    time.sleep(0.6)
    with contextlib.ExitStack() as stack:
        for reader in readers:
            stack.callback(reader.close)
        for fd in directories:
            stack.callback(os.close, fd)
        for reader in readers:
            reader.assert_same()
        for fd in directories[1:]:
            assert errno_of(os.open, "b.npy", os.O_RDONLY, dir_fd=fd) == errno.ENOENT
    os.unlink(mount.dir / "other")
    space_comes_back(mount)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_other_file_removed_while_open(mount, model, size):
    """A file that is only shown in a cut, open there: read to the end after it is removed."""
    write_file(model / "model.safetensors", content(0, SMALL))
    write_file(model / "vocabulary.bin", random_bytes(1, size))
    mount.remount()
    with contextlib.closing(Reader(model / ".shards/1/vocabulary.bin")) as reader:
        os.unlink(model / "vocabulary.bin")
        time.sleep(0.7)
        reader.assert_same()


def test_space_comes_back(mount, model):
    """Within seconds after rm -r, though every view was read, and one was open when it was removed."""
    for number in range(1, 4):
        write_file(model / f"model-0000{number}-of-00003.safetensors", content(number * 10, MIB, str(number)))
    mount.wait_sealed()
    assert mount.status()["stored_bytes"] > 3 * MIB
    for path in (*model.glob(".tensors/*"), *model.glob(".shards/single/*"), *model.glob(".shards/1MB/*")):
        read_file(path)
    with open(model / ".tensors/1.npy", "rb") as f:
        f.read(10)
        shutil.rmtree(model)
    space_comes_back(mount)
    mount.wait_disk(MIB)


def test_removed_and_unmounted(mount, model):
    """Removed right before the end, after its views were looked at: a store without anything left in it."""
    write_file(model / "model.safetensors", content(0))
    assert len(os.listdir(model / ".tensors")) == 4
    shutil.rmtree(model)
    mount.umount()
    mount.assert_clean()


def test_looking_takes_nothing(mount, model):
    """Reading every view, again and again, stores nothing, changes nothing, and leaves no word in the log."""
    for number in (1, 2):
        write_file(model / f"model-0000{number}-of-00002.safetensors", content(number * 10, LARGE, f"{number}x"))
    before, disk, hashes = mount.wait_sealed(), mount.disk(), tree_hashes(model)
    log = len(mount.log())
    for size in ("1", "300000", "5GB", "single", "64KiB"):
        for view in (".tensors", f".shards/{size}"):
            for path in (model / view).iterdir():
                read_file(path)
                os.listxattr(path)
    for number in range(200):
        errno_of(os.stat, model / f".tensors/{number}.npy")
    after = mount.wait_sealed()
    for key in ("stored_bytes", "objects", "pending_bytes"):
        assert after[key] == before[key], key
    assert after["data_files"] <= before["data_files"] and after["disk_bytes"] <= before["disk_bytes"]
    assert mount.disk() <= disk + 64 * 1024
    assert tree_hashes(model) == hashes
    assert len(mount.log()) == log


def test_log_does_not_grow(mount, model):
    """What is wrong with a model is not told of at each look."""
    write_file(model / "model.safetensors", content(0, SMALL))
    write_file(model / "model.safetensors.index.json", b"{")
    errno_of(write_file, model / "model-00001-of-00002.safetensors", b"{" * 100)
    os.listdir(model / ".tensors")
    before = len(mount.log())
    for _ in range(1000):
        errno_of(os.stat, model / ".tensors/b.npy")
    assert len(mount.log()) < before + 5000


def test_killed(mount, model):
    """kill -9 of the driver while views are open: they fail, the store is whole, and the views are there again."""
    write_file(model / "model.safetensors", content(0))
    mount.wait_sealed()
    fd = os.open(model / ".shards/1/model-00002-of-00004.safetensors", os.O_RDONLY)
    mount.kill()
    assert errno_of(os.pread, fd, 10, 0) in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO)
    errno_of(os.close, fd)
    mount.mount()
    assert read_file(model / ".tensors/b.npy")[128:] == tensor(0)
