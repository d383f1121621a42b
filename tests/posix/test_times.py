"""Times: every nanosecond kept, and which operation changes which of them."""

import ctypes
import mmap
import os
import stat
import time

import pytest

from support.files import (FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, RENAME_EXCHANGE, errno_of, fallocate, libc, read_file,
                           renameat2, write_file)
from support.mounts import SETTLES


def test_times_in_nanoseconds(mount):
    """utimensat keeps every nanosecond, before 1970 and after 2038, for files, directories and links."""
    write_file(mount.dir / "file", b"x")
    os.mkdir(mount.dir / "directory")
    os.symlink("nowhere", mount.dir / "link")
    times = {"file": (1, 1_700_000_000_123_456_789), "directory": (4_000_000_000_000_000_001, 5),
             "link": (-1_000_000_001, -5)}
    for name, ns in times.items():
        os.utime(mount.dir / name, ns=ns, follow_symlinks=False)
    for how in SETTLES:
        mount.settle(how)
        for name, ns in times.items():
            info = os.lstat(mount.dir / name)
            assert (info.st_atime_ns, info.st_mtime_ns) == ns, (how, name)


def test_time_now_and_omit(mount):
    """UTIME_NOW and UTIME_OMIT as utimensat(2) says."""
    path = mount.dir / "file"
    write_file(path, b"x")
    os.utime(path, ns=(111, 222))
    utime_now, utime_omit = (1 << 30) - 1, (1 << 30) - 2

    class Timespec(ctypes.Structure):
        _fields_ = [("sec", ctypes.c_long), ("nsec", ctypes.c_long)]

    pair = (Timespec * 2)(Timespec(0, utime_omit), Timespec(0, utime_now))
    before = time.time_ns()
    assert libc.utimensat(-100, os.fsencode(path), pair, 0) == 0
    info = os.stat(path)
    assert info.st_atime_ns == 111
    assert abs(info.st_mtime_ns - before) < 10**10


def prepare(root):
    """What the operations below are done to; `d` and `e` are directories."""
    for name in ("d", "e", "d/sub", "e/empty"):
        (root / name).mkdir()
    for name in ("d/file", "d/other", "e/target"):
        write_file(root / name, b"x" * 10_000)
    os.link(root / "d/other", root / "e/second")
    os.symlink("file", root / "d/link")
    os.setxattr(root / "d/file", "user.there", b"1")


WATCHED = ("d", "e", "d/file", "d/other", "d/link", "d/sub", "e/target")


def mapped(path):
    with open(path, "r+b") as f, mmap.mmap(f.fileno(), 0) as m:
        m[0] = 1
        m.flush()


def with_file(call, mode="r+b"):
    def act(path):
        with open(path, mode, buffering=0) as f:
            call(f.fileno())
    return act


def copied(root):
    with open(root / "d/other", "rb") as a, open(root / "d/file", "r+b") as b:
        os.copy_file_range(a.fileno(), b.fileno(), 5000, 0, 100)


def sent(root):
    with open(root / "d/other", "rb") as a, open(root / "d/file", "r+b") as b:
        os.sendfile(b.fileno(), a.fileno(), 0, 5000)


def to_file(call, *rest):
    return lambda root: call(root / "d/file", *rest)


# What each operation moves: {path: which of mtime ("m") and ctime ("c")}; paths that stay are left out.
FILE, BOTH = {"d/file": "mc"}, {"d": "mc", "e": "mc"}
OPERATIONS = {
    "write": (to_file(with_file(lambda fd: os.write(fd, b"y"))), FILE),
    "write-nothing": (to_file(with_file(lambda fd: os.write(fd, b""))), {}),
    "append": (to_file(with_file(lambda fd: os.write(fd, b"y"), "ab")), FILE),
    "truncate": (to_file(os.truncate, 5), FILE),
    "truncate-up": (to_file(os.truncate, 50_000), FILE),
    "truncate-to-its-size": (to_file(os.truncate, 10_000), FILE),
    "open-and-truncate": (to_file(with_file(lambda fd: None, "wb")), FILE),
    "open-and-close": (to_file(with_file(lambda fd: None)), {}),
    "read": (to_file(read_file), {}),
    "fsync": (to_file(with_file(os.fsync)), {}),
    "mapped-write": (to_file(mapped), FILE),
    "fallocate": (to_file(with_file(lambda fd: fallocate(fd, 0, 0, 50_000))), FILE),
    "punch": (to_file(with_file(
        lambda fd: fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 0, 5000))), FILE),
    "copy_file_range": (copied, FILE),
    "sendfile": (sent, FILE),
    "chmod": (to_file(os.chmod, 0o600), {"d/file": "c"}),
    "chmod-to-the-same": (to_file(lambda path: os.chmod(path, stat.S_IMODE(os.stat(path).st_mode))), {"d/file": "c"}),
    "chown": (to_file(os.chown, os.geteuid(), os.getegid()), {"d/file": "c"}),
    "utime": (to_file(lambda path: os.utime(path, ns=(7, 1))), {"d/file": "c"}),
    "setxattr": (to_file(os.setxattr, "user.new", b"1"), {"d/file": "c"}),
    "removexattr": (to_file(os.removexattr, "user.there"), {"d/file": "c"}),
    "stat": (to_file(os.stat), {}),
    "access": (to_file(os.access, os.R_OK), {}),
    "getxattr": (to_file(os.getxattr, "user.there"), {}),
    "create": (lambda root: write_file(root / "d/new", b"x"), {"d": "mc"}),
    "create-that-is-there": (to_file(lambda path: os.close(os.open(path, os.O_CREAT | os.O_WRONLY))), {}),
    "mkdir": (lambda root: os.mkdir(root / "d/new"), {"d": "mc"}),
    "mkfifo": (lambda root: os.mkfifo(root / "d/new"), {"d": "mc"}),
    "symlink": (lambda root: os.symlink("x", root / "d/new"), {"d": "mc"}),
    "readlink": (lambda root: os.readlink(root / "d/link"), {}),
    "listdir": (lambda root: os.listdir(root / "d"), {}),
    "rmdir": (lambda root: os.rmdir(root / "d/sub"), {"d": "mc"}),
    "link": (lambda root: os.link(root / "d/file", root / "e/new"), {"d/file": "c", "e": "mc"}),
    "unlink": (lambda root: os.unlink(root / "d/file"), {"d": "mc"}),
    "unlink-one-of-two": (lambda root: os.unlink(root / "e/second"), {"d/other": "c", "e": "mc"}),
    "rename": (lambda root: os.rename(root / "d/file", root / "d/new"), {"d": "mc", "d/file": "c"}),
    "rename-away": (lambda root: os.rename(root / "d/file", root / "e/new"), BOTH | {"d/file": "c"}),
    "rename-over": (lambda root: os.rename(root / "d/file", root / "e/target"), BOTH | {"d/file": "c"}),
    "rename-over-one-of-two": (lambda root: os.rename(root / "d/file", root / "e/second"),
                               BOTH | {"d/file": "c", "d/other": "c"}),
    "rename-a-directory": (lambda root: os.rename(root / "d/sub", root / "e/new"), BOTH | {"d/sub": "c"}),
    "rename-over-a-directory": (lambda root: os.rename(root / "d/sub", root / "e/empty"), BOTH | {"d/sub": "c"}),
    "exchange": (lambda root: renameat2(root / "d/file", root / "e/target", RENAME_EXCHANGE),
                 BOTH | {"d/file": "c", "e/target": "c"}),
    "refused": (lambda root: errno_of(os.rmdir, root / "e"), {}),
}


def moved(root, operation):
    """{path: "m", "c" or "mc"} of what the operation moves forward, whatever its name is afterwards."""
    fds = {name: os.open(root / name, os.O_PATH | os.O_NOFOLLOW) for name in WATCHED}
    for name in WATCHED:
        os.utime(root / name, ns=(1, 1), follow_symlinks=False)
    before = {name: os.fstat(fd) for name, fd in fds.items()}
    time.sleep(0.02)  # the clock of file systems goes by ticks
    operation(root)
    found = {}
    for name, fd in fds.items():
        info = os.fstat(fd)
        kinds = "m" * (info.st_mtime_ns != 1) + "c" * (info.st_ctime_ns > before[name].st_ctime_ns)
        if kinds and info.st_nlink:
            found[name] = kinds
        os.close(fd)
    return found


@pytest.mark.parametrize("how", ["dirty", "sealed"])
def test_what_moves_times(mount, plain, how):
    """Which operation moves mtime and ctime of what: as POSIX says, and as on the disk."""
    for name in OPERATIONS:
        for root in (plain, mount.dir):
            (root / name).mkdir()
            prepare(root / name)
    mount.settle(how)
    on_disk, found = ({name: moved(root / name, operation) for name, (operation, _) in OPERATIONS.items()}
                      for root in (plain, mount.dir))
    assert found == on_disk
    assert found == {name: expected for name, (_, expected) in OPERATIONS.items()}


def test_times_are_kept(mount):
    """What an operation has moved is so after sealing and after a remount."""
    prepare(mount.dir)
    for name in ("d/file", "d/other"):
        with open(mount.dir / name, "ab") as f:
            f.write(b"more")
    times = {name: (os.lstat(mount.dir / name).st_mtime_ns, os.lstat(mount.dir / name).st_ctime_ns) for name in WATCHED}
    for how in SETTLES:
        mount.settle(how)
        assert {name: (os.lstat(mount.dir / name).st_mtime_ns, os.lstat(mount.dir / name).st_ctime_ns)
                for name in WATCHED} == times, how


def test_clock(mount):
    """Times are those of the machine's clock, and later operations have later times."""
    path = mount.dir / "file"
    before = time.time_ns() - 50_000_000
    seen = []
    for number in range(5):
        write_file(path, b"%d" % number)
        seen.append(os.stat(path).st_mtime_ns)
        time.sleep(0.02)
    assert before <= seen[0] and seen == sorted(set(seen)) and seen[-1] <= time.time_ns()


def test_mtime_set_on_an_open_file(mount):
    """tar and rsync set times on a file that is still open, or before a rename: they stay."""
    path, target = mount.dir / ".file.tmp", mount.dir / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(fd, b"x" * 100_000)
    os.utime(fd, ns=(5, 123_456_789))
    os.close(fd)
    os.rename(path, target)
    for how in SETTLES:
        mount.settle(how)
        assert os.stat(target).st_mtime_ns == 123_456_789, how
