"""Tensors of one model that are written, changed, renamed and read by many at once; handles, mappings, full disks.

    WEIGHTFS_TENSOR_SECONDS   seconds for each race (default 2)
"""

import concurrent.futures
import contextlib
import errno
import json
import mmap
import os
import random
import subprocess
import threading
import time

import pytest

np = pytest.importorskip("numpy")
safetensors_numpy = pytest.importorskip("safetensors.numpy")

from support.disks import small_disk
from support.files import KIB, MIB, at_once, errno_of, fallocate, in_child, random_bytes, write_all, write_file
from support.mounts import wait_for
from support.tensors import model, npy

LIMIT = "user.weightfs.max_shard_size"
SECONDS = float(os.environ.get("WEIGHTFS_TENSOR_SECONDS", "2"))
QUICK = 1.5  # seconds for a look at a directory, however many of its tensors somebody still writes: no wait for each
RETRIES = 50  # of a reader whose shard has just been renamed


def some(number, size=10, dtype="<f4"):
    return np.full(size, number, dtype)


def assert_model(directory, expected):
    found = model(directory)
    assert sorted(found) == sorted(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array), name


@pytest.fixture(params=["default", "passthrough=off"])
def directory(request, unmounted):
    """An empty directory of a mount, with the kernel's passthrough (where it is to be had) and without."""
    unmounted.mount(*([] if request.param == "default" else [request.param]))
    made = unmounted.dir / "m"
    made.mkdir()
    return made


@pytest.fixture
def one(mount):
    """As above, by the usual options alone."""
    made = mount.dir / "m"
    made.mkdir()
    return made


# ---- handles ----


def test_every_call_on_a_handle(directory):
    """O_APPEND, pwrite backwards, ftruncate, fallocate, fsync, a mapping: what counts is what is there at the end."""
    content = npy(some(3, 50_000))
    half = len(content) // 2

    def append(fd):
        write_all(fd, content)

    def backwards(fd):
        os.pwrite(fd, content[half:], half)
        os.fsync(fd)
        os.pwrite(fd, content[:half], 0)

    def longer(fd):
        write_all(fd, content + b"rest")
        os.ftruncate(fd, len(content))

    def reserved(fd):
        fallocate(fd, 0, 0, len(content))
        os.pwrite(fd, content, 0)
        os.fdatasync(fd)

    def mapped(fd):
        os.ftruncate(fd, len(content))
        with mmap.mmap(fd, len(content)) as mapping:
            mapping[:] = content
            mapping.flush()

    ways = [append, backwards, longer, reserved, mapped]
    for way in ways:
        flags = os.O_APPEND if way is append else 0
        fd = os.open(directory / f".tensors/{way.__name__}.npy", os.O_RDWR | os.O_CREAT | flags, 0o644)
        way(fd)
        os.close(fd)
    assert_model(directory, {way.__name__: some(3, 50_000) for way in ways})
    where = os.open(directory / ".tensors", os.O_RDONLY)
    os.fsync(where)
    os.close(where)


def test_opened_to_be_changed(directory):
    """r+ over what has just been put, and over what is in a shard: in place, truncated, or left as it is."""
    content = npy(some(1))
    for look in (False, True):
        write_file(directory / ".tensors/a.npy", content)
        np.save(directory / ".tensors/b.npy", some(2))
        if look:
            assert_model(directory, {"a": some(1), "b": some(2)})
        os.close(os.open(directory / ".tensors/b.npy", os.O_RDWR))
        fd = os.open(directory / ".tensors/a.npy", os.O_RDWR)
        os.pwrite(fd, np.float32(9).tobytes(), len(content) - 4)
        os.close(fd)
        assert_model(directory, {"a": np.append(some(1, 9), np.float32(9)), "b": some(2)})
        write_file(directory / ".tensors/a.npy", npy(some(4, 2)))
        assert_model(directory, {"a": some(4, 2), "b": some(2)})


def test_copies_of_a_descriptor(one):
    """dup, and a child that ends: the tensor is there with the last of them."""
    content = npy(some(7, 1000))
    fd = os.open(one / ".tensors/a.npy", os.O_RDWR | os.O_CREAT)
    write_all(fd, content)
    os.close(os.dup(fd))
    in_child(lambda: None)
    os.close(fd)
    assert_model(one, {"a": some(7, 1000)})


def test_writer_that_does_not_close(mount, one):
    """What nobody has closed is not the model's, and is gone with the driver."""
    fd = os.open(one / ".tensors/a.npy", os.O_RDWR | os.O_CREAT)
    write_all(fd, npy(some(1)))
    os.fsync(fd)
    np.save(one / ".tensors/b.npy", some(2))
    assert_model(one, {"b": some(2)})
    mount.kill()
    assert errno_of(os.close, fd) in (0, errno.ENOTCONN, errno.ECONNABORTED)
    mount.mount()
    assert_model(one, {"b": some(2)})


def test_two_handles(one):
    """The tensor is what the last close finds."""
    first, second = (os.open(one / ".tensors/a.npy", os.O_RDWR | os.O_CREAT) for _ in range(2))
    write_all(first, npy(some(1)))
    os.close(first)
    os.pwrite(second, np.float32(9).tobytes(), 128)
    os.close(second)
    assert_model(one, {"a": np.append(np.float32(9), some(1, 9))})


def seconds(function, *args):
    start = time.monotonic()
    try:
        function(*args)
    except OSError:
        pass
    return time.monotonic() - start


def test_looks_do_not_wait_for_writers(mount, one):
    """A directory in which many tensors are mapped to be written is looked at in no time, and so are others."""
    (mount.dir / "other").mkdir()
    np.save(one / ".tensors/seen.npy", some(1))
    os.listdir(one)
    maps = []
    for number in range(10):
        fd = os.open(one / f".tensors/t{number}.npy", os.O_RDWR | os.O_CREAT)
        write_all(fd, npy(some(number)))
        maps.append(mmap.mmap(fd, 0))
        os.close(fd)
    looks = [seconds(os.listdir, one), seconds(os.stat, one / "config.json")]
    np.save(mount.dir / "other/.tensors/a.npy", some(1))
    looks.append(seconds(os.listdir, mount.dir / "other"))
    for mapping in maps:
        mapping.close()
    assert max(looks) < QUICK, looks
    wait_for(lambda: len(model(one)) == 11, 60, "tensors that are mapped no longer")


# ---- at once ----


@contextlib.contextmanager
def beside(*functions):
    """Each in a thread, again and again, until the block ends; what they raise is raised."""
    stop = threading.Event()

    def again(function):
        while not stop.is_set():
            function()

    with concurrent.futures.ThreadPoolExecutor(len(functions)) as pool:
        jobs = [pool.submit(again, function) for function in functions]
        try:
            yield
        finally:
            stop.set()
    for job in jobs:
        job.result()


def until(seconds):
    """0, 1, … for that many seconds."""
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        yield number
        number += 1


def test_no_update_is_lost(one):
    """What was closed is there, whoever looks at the directory (and has it settled) at the same time."""
    with beside(lambda: os.listdir(one), lambda: os.listdir(one)):
        for number in until(SECONDS):
            np.save(one / ".tensors/a.npy", some(number, 1000))
            assert np.array_equal(np.load(one / ".tensors/a.npy"), some(number, 1000)), number
            if number % 5 == 0:
                os.unlink(one / ".tensors/a.npy")
                assert not (one / ".tensors/a.npy").exists(), number
            elif number % 5 == 1:
                os.rename(one / ".tensors/a.npy", one / ".tensors/b.npy")
                assert np.array_equal(np.load(one / ".tensors/b.npy"), some(number, 1000)), number


def test_64_writers(one):
    """Threads that write tensors of their own, each several times: the last ones are the model."""
    def write(number):
        for turn in range(5):
            np.save(one / f".tensors/t{number}.npy", some(10 * number + turn, 1000 + number))

    with beside(lambda: os.listdir(one)), concurrent.futures.ThreadPoolExecutor(64) as pool:
        assert list(pool.map(write, range(64))) == [None] * 64
    assert_model(one, {f"t{number}": some(10 * number + 4, 1000 + number) for number in range(64)})


def read_by_index(directory, generation):
    """The model as a loader reads it; each shard is of one generation, all tensors that the index says are in it.

    A shard that has gone, or an index that names it no more, is looked for again.
    """
    for _ in range(RETRIES):
        names = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
        try:
            for shard in sorted(set(names.values())):
                wanted = {name for name in names if names[name] == shard}
                loaded = safetensors_numpy.load_file(directory / shard)
                if not wanted <= loaded.keys():
                    break
                assert all(len(set(array.tolist())) == 1 for array in loaded.values()), "a tensor is half of each"
            else:
                return
        except FileNotFoundError:
            pass
    raise AssertionError("no index fits its shards")


@pytest.mark.parametrize("cut_again", [False, True], ids=["same-shards", "cut-again"])
def test_reader_beside_a_writer(one, cut_again):
    """A loader that goes by the index sees, shard by shard, the old or the new; it waits for nobody."""
    for number in range(12):
        np.save(one / f".tensors/t{number:02d}.npy", some(0, 10_000))
    os.setxattr(one, LIMIT, b"100KB")
    generation = [0]
    with beside(lambda: read_by_index(one, generation), lambda: read_by_index(one, generation)):
        for number in until(SECONDS):
            np.save(one / f".tensors/t{number % 12:02d}.npy", some(number, 10_000))
            if cut_again and number % 10 == 0:
                os.setxattr(one, LIMIT, [b"100KB", b"200KB", b"50KB"][number // 10 % 3])
    assert len(model(one)) == 12


def test_copy_beside_a_writer(mount, one, plain):
    """cp -r of a model that is written: each file of it is whole."""
    for number in range(12):
        np.save(one / f".tensors/t{number:02d}.npy", some(0, 50_000))
    os.setxattr(one, LIMIT, b"1MB")
    os.removexattr(one, LIMIT)
    shards = sorted(path.name for path in one.glob("*.safetensors"))

    def write():
        number = random.randrange(12)
        np.save(one / f".tensors/t{number:02d}.npy", some(random.randrange(1000), 50_000))

    with beside(write):
        for turn, target in enumerate([plain, mount.dir] * 3):
            copy = target / f"copy{turn}"
            done = subprocess.run(["cp", "-r", one, copy], capture_output=True, text=True)
            if "replaced while being copied" in done.stderr or "No such file" in done.stderr:
                continue  # as of any directory in which files are renamed over others
            assert (done.returncode, done.stderr) == (0, "")
            assert sorted(path.name for path in copy.glob("*.safetensors")) == shards
            assert all(len(set(array.tolist())) == 1 for array in model(copy).values())
            assert len(model(copy)) == 12


def test_cut_while_written(one):
    """The limit is set again and again beside four writers: no tensor is lost."""
    last = {}

    def write(number):
        for turn in until(SECONDS):
            name = f"{number}.{turn % 7}"
            np.save(one / f".tensors/{name}.npy", some(turn, 1000 + turn % 100))
            last[name] = some(turn, 1000 + turn % 100)

    limits = iter([b"10KB", b"1MB", b"30KB"] * 100_000)
    with beside(lambda: os.setxattr(one, LIMIT, next(limits))), concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert_model(one, last)


def test_rename_beside_writers(mount, one):
    """Tensors go to and fro between two models while both are written: each is in one of them."""
    other = mount.dir / "n"
    other.mkdir()
    for number in range(8):
        np.save(one / f".tensors/t{number}.npy", some(number))

    def move(source, target):
        for number in range(8):
            with contextlib.suppress(FileNotFoundError):
                os.rename(source / f".tensors/t{number}.npy", target / f".tensors/t{number}.npy")

    with beside(lambda: move(one, other), lambda: os.listdir(other)):
        for number in until(SECONDS):
            np.save(one / ".tensors/x.npy", some(number))
            move(other, one)
    move(other, one)
    assert_model(one, {f"t{n}": some(n) for n in range(8)} | {"x": model(one)["x"]})


# ---- how much ----


def memory(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) * KIB for line in status if line.startswith("VmRSS"))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("updates", [600, pytest.param(5000, marks=pytest.mark.long)])
@pytest.mark.skipif(bool(os.environ.get("SANITIZE")), reason="sanitizers keep memory that was freed")
def test_updates_of_one_tensor(mount, one, updates):
    """Neither the driver's memory nor the store grows with the number of updates."""
    for number in range(20):
        np.save(one / f".tensors/n{number}.npy", np.random.default_rng(number).random(2000))
    seen = []
    for number in range(updates):
        write_file(one / ".tensors/n7.npy", npy(np.random.default_rng(number).random(2000)))
        if number % 3 == 0:
            os.stat(one / "model.safetensors")
        if number % (updates // 5) == updates // 5 - 1:
            mount.wait_sealed()
            seen.append((memory(mount.pid), mount.disk(), mount.status()["stored_bytes"]))
    assert seen[-1][0] < seen[1][0] + 16 * MIB, seen
    assert seen[-1][1] < 16 * MIB, seen # its log has 4, and spare data files are kept
    wait_for(lambda: mount.wait_sealed()["stored_bytes"] < 20 * 2000 * 8 + 64 * KIB, 60, "old tensors given back")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("most", [1000, pytest.param(10_000, marks=pytest.mark.long)])
def test_time_for_many_tensors(mount, most):
    """Ten times as many take about ten times as long, and the first look is quick."""
    def put(directory, count):
        directory.mkdir()
        content, start = npy(some(1, 100)), time.monotonic()
        for number in range(count):
            write_file(directory / f".tensors/model.layers.{number}.weight.npy", content)
        return time.monotonic() - start

    few, many = put(mount.dir / "few", most // 10), put(mount.dir / "many", most)
    assert many < 20 * few + 1
    start = time.monotonic()
    assert os.listdir(mount.dir / "many") == ["model.safetensors"]
    assert time.monotonic() - start < 0.5 + most / 2000
    assert len(os.listdir(mount.dir / "many/.tensors")) == most


# ---- full disks ----


@pytest.fixture
def disk(tmp_path):
    with small_disk("ext4", tmp_path, 112 * MIB) as path:
        yield path


@pytest.mark.root_only
@pytest.mark.parametrize("kind", ["disk", "max_size"])
def test_full(request, disk, unmounted, kind):
    """ENOSPC for the writer; what was taken stays to be read; removing works and makes room."""
    if kind == "disk":
        unmounted.store = disk / "store"
    one = unmounted.mount(*(["max_size=60MB"] if kind == "max_size" else [])).dir / "m"
    one.mkdir()
    arrays = {}
    for number in range(100):
        array = np.frombuffer(random_bytes(number, 4 * MIB), "<i4")
        if not errno_of(np.save, one / f".tensors/n{number}.npy", array):
            arrays[f"n{number}"] = array
        elif errno_of(write_file, one / ".tensors/more.npy", b"x" * MIB) == errno.ENOSPC:
            break
    assert 5 < len(arrays) < 30
    for name, array in arrays.items():
        assert np.array_equal(np.load(one / f".tensors/{name}.npy"), array), name
    for name in list(arrays)[3:]:
        os.unlink(one / f".tensors/{name}.npy")
        del arrays[name]
    wait_for(lambda: errno_of(np.save, one / ".tensors/again.npy", some(1, MIB)) == 0, 60, "room for a tensor")
    assert_model(one, arrays | {"again": some(1, MIB)})
    unmounted.remount()
    assert_model(one, arrays | {"again": some(1, MIB)})


def test_closed_while_the_driver_has_no_processor(mount, one):
    """Who closes a tensor's file while somebody looks has it in the listing, however long the driver was not running."""
    fd = os.open(one / ".tensors/a.npy", os.O_RDWR | os.O_CREAT)
    write_all(fd, npy(some(1)))
    os.close(os.dup(fd))  # put; the file stays open
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        look = pool.submit(os.listdir, one / ".tensors")
        time.sleep(0.1)
        with mount.stopped():
            closing = pool.submit(os.close, fd)
            time.sleep(0.5)
        closing.result()
        assert look.result() == ["a.npy"]


@pytest.mark.parametrize("options", [(), ("passthrough=off",)], ids=["default", "passthrough=off"])
def test_many_programs_at_once(unmounted, options):
    """More programs than the driver has threads, each in a directory of its own: what one closed it sees, at once."""
    unmounted.mount(*options)

    def work(number):
        made = unmounted.dir / f"m{number}"
        made.mkdir()
        for turn in range(5):
            np.save(made / f".tensors/a{turn}.npy", some(turn))
            os.rename(made / f".tensors/a{turn}.npy", made / f".tensors/b{turn}.npy")
            assert sorted(os.listdir(made / ".tensors")) == [f"b{n}.npy" for n in range(turn + 1)], number
        return len(model(made))

    assert at_once(40, work) == [5] * 40
