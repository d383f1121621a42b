"""What each call waits for: the power is cut the moment that it has returned."""

import contextlib
import io
import os
import threading
import time

import pytest

np = pytest.importorskip("numpy")
safetensors_numpy = pytest.importorskip("safetensors.numpy")

from support import shards
from support.files import KIB, MIB, libc, random_bytes, read_file, write_all, write_file
from support.mounts import data_files, wait_for
from support.power import Disk, Power, disks

pytestmark = pytest.mark.root_only

AT_ONCE = 5  # seconds after which what was sealed is on the disk by itself
ERROR = "user.weightfs.error"


@pytest.fixture(params=disks("ext4"))
def power(request, unmounted, tmp_path):
    found = Power(unmounted, Disk(request.param, tmp_path, 512 * MIB))
    yield found
    found.end()


def fsync(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def close(fd):
    """Of a mount that is no more."""
    try:
        os.close(fd)
    except OSError:
        pass


def with_fsync(path, content):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        write_all(fd, content)
        os.fsync(fd)
    finally:
        os.close(fd)


def with_flag(flag):
    def write(path, content):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | flag, 0o644)
        try:
            write_all(fd, content)
        finally:
            os.close(fd)
    return write


def twice(path, content):
    """The second fsync finds that the first has told of the file."""
    with_fsync(path, content[:100])
    with_fsync(path, content)


def as_savers_do(path, content):
    temporary = path.with_name(f"{path.name}.tmp")
    with_fsync(temporary, content)
    os.rename(temporary, path)
    fsync(path.parent)


def over_another(path, content):
    """Without fsync of the file: the rename waited for its bytes, the directory for the rename."""
    write_file(path, b"old" * 50_000)
    temporary = path.with_name(f"{path.name}.tmp")
    write_file(temporary, content)
    os.rename(temporary, path)
    fsync(path.parent)


WAYS = {"fsync": with_fsync, "twice": twice, "O_SYNC": with_flag(os.O_SYNC), "O_DSYNC": with_flag(os.O_DSYNC),
        "saved": as_savers_do, "over": over_another}


@pytest.mark.parametrize("passthrough", ["auto", pytest.param("off", marks=[pytest.mark.long, pytest.mark.endurance])])
def test_durable_at_once(power, passthrough):
    """fsync, O_SYNC, fsync of the directory: the file is there, whole, under its name, and nothing is said against it."""
    mount = power.boot(f"passthrough={passthrough}")
    wanted = {}
    for number, (name, write) in enumerate(WAYS.items()):
        for size in (3000, 400 * KIB):
            path = mount.dir / f"{name}-{size}"
            wanted[path] = random_bytes(number * 1000 + size, size)
            write(path, wanted[path])
    power.cut()
    power.restore()
    for path, content in wanted.items():
        assert read_file(path) == content, path
        assert path.name.startswith("twice") or ERROR not in os.listxattr(path), path


@pytest.mark.parametrize("flag", [os.O_DSYNC, pytest.param(os.O_SYNC, marks=[pytest.mark.long, pytest.mark.endurance])])
@pytest.mark.parametrize("passthrough", ["auto", pytest.param("off", marks=[pytest.mark.long, pytest.mark.endurance])])
def test_each_write_is_durable(power, passthrough, flag):
    """With O_SYNC or O_DSYNC a write that returned survives, before anybody closes the file."""
    mount = power.boot(f"passthrough={passthrough}")
    fd = os.open(mount.dir / "log", os.O_WRONLY | os.O_CREAT | flag, 0o644)
    for number in range(5):
        os.write(fd, bytes([number]) * 5000)
    power.cut()
    close(fd)
    power.restore()
    assert read_file(mount.dir / "log") == b"".join(bytes([number]) * 5000 for number in range(5))


def test_replaced_without_fsync(power):
    """The kernel may write the database's log back before anything else: whoever was replaced was replaced by a whole file."""
    mount = power.boot()
    old, new = shards.valid(1, 100 * KIB), shards.valid(2, 100 * KIB)
    with_fsync(mount.dir / "model.safetensors", old)
    mount.wait_sealed()
    fsync(mount.dir)
    fd = os.open(mount.dir / "saved.tmp", os.O_WRONLY | os.O_CREAT)
    write_all(fd, new)
    os.rename(mount.dir / "saved.tmp", mount.dir / "model.safetensors")
    power.write_back_log()
    power.cut()
    close(fd)
    power.restore()
    assert read_file(mount.dir / "model.safetensors") == new


def test_not_made_durable(power):
    """A new file that nobody made durable is absent, or whole, or reported by name, also where the log was written back."""
    mount = power.boot("passthrough=off")
    content = random_bytes(3, 900 * KIB)
    fd = os.open(mount.dir / "new.bin", os.O_WRONLY | os.O_CREAT)
    write_all(fd, content)
    power.write_back_log()
    power.cut()
    close(fd)
    power.restore()
    report = mount.reports()["/new.bin"]
    assert (report["verdict"], report["reason"]) == ("incomplete", "power-cut")
    assert os.getxattr(mount.dir / "new.bin", ERROR).startswith(b"power-cut")
    write_file(mount.dir / "new.bin", content)  # and it can be written anew
    mount.wait_sealed()
    assert mount.reports() == {}


def test_changed_where_it_is_shared(power):
    """A durable file that shares its bytes is copied when it is written: all but what was written is there after a cut."""
    mount = power.boot("passthrough=off")
    content = random_bytes(7, 900 * KIB)
    with_fsync(mount.dir / "one.bin", content)
    mount.wait_sealed()
    with open(mount.dir / "one.bin", "rb") as source, open(mount.dir / "two.bin", "wb") as target:
        assert os.copy_file_range(source.fileno(), target.fileno(), len(content)) == len(content)
    fsync(mount.dir)
    fd = os.open(mount.dir / "two.bin", os.O_RDWR)
    os.pwrite(fd, b"changed", 5000)
    power.write_back_log()
    power.cut()
    close(fd)
    power.restore()
    found = read_file(mount.dir / "two.bin")
    assert found[:4096] == content[:4096] and found[8192:] == content[8192:]
    assert found == content or "/two.bin" in mount.reports()
    assert read_file(mount.dir / "one.bin") == content


def test_changed_after_it_was_durable(power):
    """Cut, or opened to be written in place, a file that was durable is as it was, as it is now, or reported: no page tells."""
    mount = power.boot()
    content = random_bytes(1, 300 * KIB)
    for name in ("opened.bin", "cut.bin", "left.bin"):
        with_fsync(mount.dir / name, content)
    fd = os.open(mount.dir / "opened.bin", os.O_RDWR)
    os.truncate(mount.dir / "cut.bin", 5000)
    power.cut()
    close(fd)
    power.restore()
    assert read_file(mount.dir / "opened.bin") == read_file(mount.dir / "left.bin") == content
    said = {path for path, report in mount.reports().items() if report["reason"] == "power-cut"}
    assert said == {"/opened.bin", "/cut.bin"}


@pytest.mark.endurance
@pytest.mark.long
def test_rows_that_are_lost(power):
    """Data files that reached the disk, and whose rows did not, are removed by the next mount, however many."""
    mount = power.boot()
    for number in range(100):
        write_file(mount.dir / f"{number}.bin", random_bytes(number, 70 * KIB))
    for path in data_files(mount.store):
        fsync(path)
    power.cut()
    power.restore()
    mount.wait_sealed()
    kept = len(list(mount.dir.iterdir()))
    assert len(data_files(mount.store)) <= kept


def test_removals_that_are_lost(power):
    """Data files whose rows are gone for good, and that a power cut brings back, are no damage, and removed by the next mount."""
    mount = power.boot()
    for number in range(100):
        write_file(mount.dir / f"{number}.bin", random_bytes(number, 70 * KIB))
    mount.wait_sealed()
    os.sync()
    with contextlib.ExitStack() as somebody:
        for path in data_files(mount.store):  # what somebody has open is not kept to be used again
            somebody.enter_context(open(path, "rb"))
        for path in mount.dir.iterdir():
            path.unlink()
        wait_for(lambda: not data_files(mount.store), 30, "files given back")
    power.write_back_log()
    power.cut()
    power.restore()
    mount.wait_sealed()
    wait_for(lambda: len(data_files(mount.store)) <= len(list(mount.dir.iterdir())), 30, "files of nobody removed")


def test_tensor_not_made_durable(power):
    """A tensor whose bytes had not reached the disk was not written: the model is as it was; one that was made durable is there."""
    mount = power.boot()
    model = mount.dir / "model"
    model.mkdir()
    out = [io.BytesIO() for _ in range(3)]
    for number, stream in enumerate(out):
        np.save(stream, np.full(100_000, number, "<i8"))
    write_file(model / ".tensors/kept.npy", out[0].getvalue())
    fsync(model)
    write_file(model / ".tensors/lost.npy", out[1].getvalue())
    power.write_back_log()
    power.cut()
    power.restore()
    found = safetensors_numpy.load_file(model / "model.safetensors")
    assert set(found["kept"].tolist()) == {0}
    assert "lost" not in found or set(found["lost"].tolist()) == {1}


@pytest.mark.endurance
@pytest.mark.long
def test_unmounted(power):
    """What was written is on the disk when the unmount has returned."""
    mount = power.boot()
    content = random_bytes(4, 2 * MIB)
    write_file(mount.dir / "file.bin", content)
    mount.umount()
    power.disk.cut()
    power.restore()
    assert read_file(mount.dir / "file.bin") == content
    assert mount.reports() == {}


@pytest.mark.endurance
@pytest.mark.long
def test_sync(power):
    """sync(2) writes the disk below, too: bytes and names are there, though nobody noted that they are."""
    mount = power.boot()
    content = random_bytes(5, 900 * KIB)
    write_file(mount.dir / "file.bin", content)
    os.sync()
    power.cut()
    power.restore()
    assert read_file(mount.dir / "file.bin") == content


@pytest.mark.endurance
@pytest.mark.long
def test_by_itself(power):
    """What was closed is sealed and on the disk after 5 s, though nobody asked for it."""
    mount = power.boot()
    wanted = {mount.dir / f"{size}.bin": random_bytes(size, size) for size in (3000, 900 * KIB, 20 * MIB)}
    for path, content in wanted.items():
        write_file(path, content)
    time.sleep(AT_ONCE)
    power.cut()
    power.restore()
    for path, content in wanted.items():
        assert read_file(path) == content
    assert mount.reports() == {}


@pytest.mark.endurance
@pytest.mark.long
def test_fsync_waits_for_its_own(power):
    """While one file is written without end, others are made durable; what they wait for is not that file."""
    mount = power.boot()
    done = threading.Event()

    def write_on():
        fd = os.open(mount.dir / "large.bin", os.O_WRONLY | os.O_CREAT)
        try:
            for at in range(48):
                if done.is_set():
                    break
                os.pwrite(fd, bytes(MIB), at * MIB)
                time.sleep(0.005)
        finally:
            os.close(fd)

    writer = threading.Thread(target=write_on)
    writer.start()
    try:
        for number in range(10):
            with_fsync(mount.dir / f"{number}.bin", bytes([number]) * 3000)
    finally:
        done.set()
        writer.join()
    power.cut()
    power.restore()
    for number in range(10):
        assert read_file(mount.dir / f"{number}.bin") == bytes([number]) * 3000


@pytest.mark.endurance
@pytest.mark.long
def test_syncfs_is_not_told(power):
    """syncfs(2) of the mount succeeds, but the kernel tells no FUSE driver of it: docs/semantics.md says so."""
    mount = power.boot("passthrough=off")
    write_file(mount.dir / "file.bin", random_bytes(6, 100 * KIB))
    fd = os.open(mount.dir, os.O_RDONLY)
    try:
        assert libc.syncfs(fd) == 0
    finally:
        os.close(fd)
    power.cut()
    power.restore()
    path = mount.dir / "file.bin"
    assert not path.exists() or read_file(path) == random_bytes(6, 100 * KIB) or "/file.bin" in mount.reports()
