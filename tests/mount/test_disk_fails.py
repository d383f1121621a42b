"""The disk below a mounted store fails: every call on the mount ends, with an error or not, and so does the mount.

The disk is an ext4 or XFS on a loop device that is shut down (every access gives EIO), whose image is cut short
(I/O errors), which aborts to read-only, or which is detached.
"""

import errno
import faulthandler
import fcntl
import mmap
import os
import signal
import struct
import subprocess
import threading
import time

import pytest

from support.disks import MKFS
from support.files import MIB, random_bytes, read_file, write_file
from support.mounts import is_running, wait_for
from support.shards import shard

pytestmark = pytest.mark.root_only

CALL_SECONDS = 60  # tells a hang, not a slow machine
EXT4_IOC_SHUTDOWN = 2 << 30 | 4 << 16 | ord("X") << 8 | 125  # _IOR('X', 125, __u32); XFS_IOC_GOINGDOWN is the same
SHUTDOWN_NOFLUSH = 2
KEPT = random_bytes(1, 3 * MIB)


class Disk:
    """A file system of its own on a loop device, which can be made to fail."""

    def __init__(self, kind, base):
        command, size = MKFS[kind]
        self.kind, self.image, self.path = kind, base / "disk.img", base / "disk"
        self.path.mkdir()
        self.size = max(size, 192 * MIB)
        with open(self.image, "wb") as f:
            f.truncate(self.size)
        subprocess.run([*command, self.image], check=True, capture_output=True)
        self.device = subprocess.run(["losetup", "--find", "--show", self.image], check=True, capture_output=True,
                                     text=True).stdout.strip()
        self.mount()

    def mount(self):
        subprocess.run(["mount", self.device, self.path], check=True)

    def umount(self):
        wait_for(lambda: subprocess.run(["umount", self.path], capture_output=True).returncode == 0, CALL_SECONDS,
                 "nobody looks at the disk")

    def shutdown(self):
        fd = os.open(self.path, os.O_RDONLY)
        fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("I", SHUTDOWN_NOFLUSH))
        os.close(fd)

    def cut(self):
        """What lies behind the first 8 MiB cannot be read or written any more; nothing of it is in memory."""
        os.sync()
        os.truncate(self.image, 8 * MIB)
        subprocess.run(["losetup", "-c", self.device], check=True)
        write_file("/proc/sys/vm/drop_caches", b"3")

    def abort(self):
        subprocess.run(["mount", "-o", "remount,abort", self.path], check=True)

    def detach(self):
        subprocess.run(["umount", "-l", self.path], check=True)

    def end(self):
        subprocess.run(["umount", "-l", self.path], capture_output=True)
        subprocess.run(["losetup", "-d", self.device], check=True)


WAYS = [("ext4", "shutdown"), ("xfs", "shutdown"), ("ext4", "cut"), ("ext4", "abort"), ("ext4", "detach")]


def quick_and_long(*quick):
    """Every way and both paths in the long form; in the short one those that `quick` names."""
    return pytest.mark.parametrize("disk,mount", [
        pytest.param(way, passthrough, id="-".join([*way, name]),
                     marks=[] if (*way, name) in quick else [pytest.mark.long, pytest.mark.endurance])
        for way in WAYS for passthrough, name in (("auto", "passthrough"), ("off", "ordinary"))], indirect=True)


@pytest.fixture
def disk(request, tmp_path):
    kind, way = request.param
    disk = Disk(kind, tmp_path)
    disk.fail = getattr(disk, way)
    disk.way = way
    yield disk
    disk.end()


@pytest.fixture
def mount(request, disk, unmounted):
    """A mount of a store on that disk; ended, whatever happened, before the disk is."""
    unmounted.store = disk.path / "store"
    unmounted.mount(f"passthrough={request.param}")
    yield unmounted
    unmounted.end()


def call(name, function):
    """Run it in a process of its own, which must end; its errno, 0, or the signal it died of as -N."""
    pid = os.fork()
    if pid == 0:
        code = 1
        faulthandler.disable()  # SIGBUS is an answer
        try:
            function()
            code = 0
        except OSError as error:
            code = error.errno
        except BaseException:
            code = 255
        finally:
            os._exit(code)
    deadline = time.monotonic() + CALL_SECONDS
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            with open(f"/proc/{pid}/stack") as stack:
                raise AssertionError(f"{name} hangs:\n{stack.read()}")
        time.sleep(0.005)


def read_mapped(path):
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return sum(mapped[::4096])


def write_mapped(path):
    with open(path, "r+b") as f, mmap.mmap(f.fileno(), 0) as mapped:
        mapped[::4096] = bytes(len(mapped) // 4096)
        mapped.flush()


def write_and_sync(fd):
    os.pwrite(fd, b"x" * 70_000, 0)
    os.fsync(fd)


def copy(source, target):
    with open(source, "rb") as a, open(target, "wb") as b:
        while os.copy_file_range(a.fileno(), b.fileno(), 1 << 30):
            pass


def calls_on(d, open_files):
    """Every kind of call on the mount at `d`."""
    return {
        "stat": lambda: os.stat(d / "kept.bin"),
        "stat of another": lambda: os.stat(d / "absent"),
        "listing": lambda: [entry.stat() for entry in os.scandir(d)],
        "statvfs": lambda: os.statvfs(d),
        "read": lambda: read_file(d / "kept.bin"),
        "read of a composed file": lambda: read_file(d / "tuned.safetensors"),
        "read of a small file": lambda: read_file(d / "small.txt"),
        "read of a dirty file": lambda: read_file(d / "dirty.bin"),
        "read of an open file": lambda: os.pread(open_files["read"], 1 << 20, 1 << 20),
        "read of a mapping": lambda: read_mapped(d / "kept.bin"),
        "write of a mapping": lambda: write_mapped(d / "dirty.bin"),
        "write to an open file": lambda: write_and_sync(open_files["write"]),
        "write": lambda: write_file(d / "new.bin", b"x" * 200_000),
        "write of a sealed file": lambda: open(d / "other.bin", "r+b").write(b"x"),
        "truncate": lambda: os.truncate(d / "dirty.bin", 1000),
        "fallocate": lambda: os.posix_fallocate(open_files["write"], 0, 4 * MIB),
        "seek": lambda: os.lseek(open_files["read"], 0, os.SEEK_HOLE),
        "copy": lambda: copy(d / "kept.bin", d / "copy.bin"),
        "mkdir": lambda: os.mkdir(d / "directory"),
        "symlink": lambda: os.symlink("a", d / "symlink"),
        "link": lambda: os.link(d / "small.txt", d / "hard"),
        "mknod": lambda: os.mkfifo(d / "fifo"),
        "rename": lambda: os.rename(d / "small.txt", d / "renamed.txt"),
        "gate": lambda: (write_file(d / ".tmp", shard({"a": b"1234"})), os.rename(d / ".tmp", d / "g.safetensors")),
        "chmod": lambda: os.chmod(d / "kept.bin", 0o600),
        "times": lambda: os.utime(d / "dirty.bin"),
        "setxattr": lambda: os.setxattr(d / "kept.bin", "user.a", b"b"),
        "getxattr": lambda: os.getxattr(d / "kept.bin", "user.weightfs.error"),
        "views": lambda: os.listdir(d / ".tensors"),
        "read of a view": lambda: read_file(d / ".tensors" / "a.safetensors"),
        "write of a view": lambda: write_file(d / ".tensors" / "n.safetensors", shard({"n": b"1234"})),
        "fsync of a directory": lambda: os.fsync(os.open(d, os.O_RDONLY)),
        "sync": lambda: subprocess.run(["sync", "-f", d], check=False, capture_output=True, timeout=CALL_SECONDS),
        "unlink": lambda: os.unlink(d / "other.bin"),
        "rmdir": lambda: os.rmdir(d / "empty"),
        "close": lambda: os.close(open_files["write"]),
    }


def prepare(mount):
    """Files in every state; what is sealed is durable."""
    d = mount.dir
    tensors = {name: random_bytes(ord(name), MIB) for name in "abc"}
    write_file(d / "base.safetensors", shard(tensors))
    mount.wait_sealed()
    write_file(d / "tuned.safetensors", shard({**tensors, "b": random_bytes(9, MIB)}))
    write_file(d / "kept.bin", KEPT)
    write_file(d / "other.bin", random_bytes(2, MIB))
    write_file(d / "small.txt", b"small")
    os.mkdir(d / "empty")
    mount.wait_sealed()
    os.sync()
    write_file(d / "dirty.bin", random_bytes(3, MIB))
    return {"read": os.open(d / "kept.bin", os.O_RDONLY),
            "write": os.open(d / "written.bin", os.O_RDWR | os.O_CREAT)}


@quick_and_long(("ext4", "shutdown", "passthrough"), ("ext4", "cut", "ordinary"))
def test_every_call_ends(disk, mount):
    """With the disk gone each call ends; the mount is unmounted; the disk back, what was sealed is there."""
    open_files = prepare(mount)
    mapping = open(mount.dir / "kept.bin", "rb")
    mapped = mmap.mmap(mapping.fileno(), 0, access=mmap.ACCESS_READ)
    disk.fail()
    results = {name: call(name, function) for name, function in calls_on(mount.dir, open_files).items()}
    results["read of an old mapping"] = call("read of an old mapping", lambda: sum(mapped[::4096]))
    wrong = {name: code for name, code in results.items() if code in (255, -signal.SIGKILL, -signal.SIGSEGV, -signal.SIGABRT)}
    assert wrong == {}, (wrong, mount.log()[-2000:])
    assert is_running(mount.pid), "the driver lives"
    if disk.way in ("shutdown", "abort"):
        failed = (errno.EIO, errno.EROFS, errno.EUCLEAN)  # XFS says EIO as "structure needs cleaning" at times
        for name in ("mkdir", "write", "rename", "fsync of a directory"):
            assert results[name] in failed, (name, results)
        assert results["read of a mapping"] in (0, errno.EIO, -signal.SIGBUS), results
    mapped.close()
    mapping.close()
    for fd in open_files.values():
        call("close", lambda fd=fd: os.close(fd))
        try:
            os.close(fd)
        except OSError:
            pass
    pid = mount.pid
    subprocess.run(["fusermount3", "-u", mount.dir], check=True, timeout=CALL_SECONDS)
    wait_for(lambda: not is_running(pid), CALL_SECONDS, "the driver's end")
    mount.watchdog.tell(disarm=str(mount.dir))
    mount.pid = None
    come_back(disk, mount)


def come_back(disk, mount):
    """The disk works again: so does the store, and what was sealed before is what it was."""
    if disk.way == "cut":
        mount.store = disk.path.parent / "nothing"  # its bytes are gone
        return
    if disk.way != "detach":
        disk.umount()
    disk.mount()
    mount.mount()
    assert read_file(mount.dir / "kept.bin") == KEPT
    assert mount.fsck()["findings"] == []
    mount.umount()
    assert mount.fsck()["findings"] == []
    mount.store = disk.path.parent / "nothing"  # for the fixture: the disk goes first


@quick_and_long(("ext4", "shutdown", "ordinary"))
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=[pytest.mark.long, pytest.mark.endurance]),
                                    pytest.param(signal.SIGHUP, marks=[pytest.mark.long, pytest.mark.endurance])], ids=["TERM", "INT", "HUP"])
def test_asked_to_stop(mount, disk, number):
    """A signal ends the driver, though programs have files open and the disk fails."""
    open_files = prepare(mount)
    disk.fail()
    pid = mount.pid
    mount.signal(number)
    assert not is_running(pid) and not mount.mounted
    for fd in open_files.values():
        call("read after the end", lambda fd=fd: os.read(fd, 100))
        try:
            os.close(fd)
        except OSError:
            pass
    mount.store = disk.path.parent / "nothing"


@quick_and_long(("xfs", "shutdown", "passthrough"))
def test_busy_when_it_fails(mount, disk):
    """Programs in the middle of reading, writing and sealing when the disk fails: none hangs."""
    open_files = prepare(mount)
    stop = time.monotonic() + 2.5

    def work(number):
        while time.monotonic() < stop:
            try:
                write_file(mount.dir / f"{number}.bin", random_bytes(number, 300_000))
                os.rename(mount.dir / f"{number}.bin", mount.dir / f"{number}.done")
                read_file(mount.dir / "kept.bin")
                os.unlink(mount.dir / f"{number}.done")
            except OSError:
                time.sleep(0.01)

    problems = []

    def watch(number):
        code = call(f"writer {number}", lambda: work(number))
        if code:
            problems.append(code)

    threads = [threading.Thread(target=watch, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    disk.fail()
    for thread in threads:
        thread.join(CALL_SECONDS + 10)
        assert not thread.is_alive()
    assert problems == []
    for fd in open_files.values():
        try:
            os.close(fd)
        except OSError:
            pass
    mount.signal(signal.SIGTERM)
    mount.store = disk.path.parent / "nothing"
