"""Opening: its flags, files without a name, many at once; fsync."""

import errno
import fcntl
import os
import resource
import socket
import stat

import pytest

from support.files import (RENAME_NOREPLACE, at_once, errno_of, in_child, libc, link_fd, random_bytes, read_file,
                           renameat2, write_file)
from support.mounts import SETTLES


def test_open_flags(mount):
    """O_EXCL, O_NOFOLLOW, O_DIRECTORY and O_CREAT as open(2) says."""
    path = mount.dir / "file"
    write_file(path, b"content")
    os.symlink("file", mount.dir / "link")
    assert errno_of(os.open, path, os.O_CREAT | os.O_EXCL | os.O_WRONLY) == errno.EEXIST
    assert errno_of(os.open, mount.dir / "link", os.O_NOFOLLOW) == errno.ELOOP
    assert errno_of(os.open, path, os.O_DIRECTORY) == errno.ENOTDIR
    assert errno_of(os.open, mount.dir / "none", os.O_RDONLY) == errno.ENOENT
    fd = os.open(path, os.O_RDONLY)
    assert errno_of(os.write, fd, b"x") == errno.EBADF
    os.close(fd)


def test_created_read_only(mount):
    """A file made with mode 0444 (or 0) can be written by the handle that made it."""
    for mode in (0o444, 0o000):
        path = mount.dir / f"{mode:o}"
        write_file(path, b"written", mode)
        assert stat.S_IMODE(os.stat(path).st_mode) == mode
        os.chmod(path, 0o644)
        assert read_file(path) == b"written"


def test_open_unlinked(mount):
    """Open, unlinked files: read, written, mapped, stat'ed; many at once; the name is free again."""
    path = mount.dir / "file"
    fds = []
    for number in range(20):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        os.unlink(path)
        os.write(fd, b"%d" % number)
        fds.append(fd)
    for number, fd in enumerate(fds):
        assert os.pread(fd, 10, 0) == b"%d" % number
        assert os.fstat(fd).st_nlink == 0
        os.fchmod(fd, 0o600)
        os.close(fd)
    assert mount.wait_sealed()["files"] == 0


def test_tmpfile(mount):
    """O_TMPFILE: a file without a name, which linkat gives one."""
    try:
        fd = os.open(mount.dir, os.O_TMPFILE | os.O_RDWR, 0o640)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT):
            pytest.skip("the kernel or libfuse has no O_TMPFILE for FUSE")
        raise
    os.write(fd, b"x" * 100_000)
    assert os.listdir(mount.dir) == []
    link_fd(fd, mount.dir / "named")
    os.close(fd)
    mount.remount()
    assert read_file(mount.dir / "named") == b"x" * 100_000
    os.close(os.open(mount.dir, os.O_TMPFILE | os.O_RDWR))
    assert mount.wait_sealed()["files"] == 1


def test_fsync(mount):
    """fsync and fdatasync of files (dirty, sealed, unlinked) and directories; sync of all."""
    path = mount.dir / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(fd, b"x" * 100_000)
    os.fsync(fd)
    os.fdatasync(fd)
    os.unlink(path)
    os.fsync(fd)
    os.close(fd)
    write_file(path, b"y" * 100_000)
    mount.wait_sealed()
    with open(path, "rb") as f:
        os.fsync(f.fileno())
    fd = os.open(mount.dir, os.O_RDONLY)
    os.fsync(fd)
    assert libc.syncfs(fd) == 0
    os.close(fd)


def test_many_open_files(mount):
    """Over a thousand files open at once, each with its own content: no descriptor runs out."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = 1200
    if hard < count + 100:
        pytest.skip(f"only {hard} descriptors here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 100), hard))
    fds = [os.open(mount.dir / f"{n}", os.O_RDWR | os.O_CREAT) for n in range(count)]
    for n, fd in enumerate(fds):
        os.write(fd, b"%d" % n)
    for n, fd in enumerate(fds):
        assert os.pread(fd, 10, 0) == b"%d" % n
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def record(process, number):
    """A line of its own length for each (process, number)."""
    return (f"{process}:{number}:" + "x" * (number * 37 % 500) + "\n").encode()


@pytest.mark.parametrize("buffered", [False, True], ids=["write", "stdio"])
def test_append_by_several_processes(mount, buffered):
    """O_APPEND: of what several processes write to one file at once every record is whole, none is lost."""
    path, count, each = mount.dir / "log", 4, 400

    def act(process):
        with open(path, "ab", buffering=8192 if buffered else 0) as f:
            for number in range(each):
                f.write(record(process, number))
                if buffered:
                    f.flush()

    at_once(count, act)
    for how in SETTLES:
        mount.settle(how)
        lines = read_file(path).splitlines(keepends=True)
        assert sorted(lines) == sorted(record(p, n) for p in range(count) for n in range(each)), how
        for process in range(count):
            own = [int(line.split(b":")[1]) for line in lines if line.startswith(b"%d:" % process)]
            assert own == sorted(own)


def test_append_ignores_the_position(mount):
    """O_APPEND writes at the end wherever the position is, pwrite(2) too (as Linux has it); F_SETFL sets it."""
    path = mount.dir / "file"
    write_file(path, b"0123456789")
    fd = os.open(path, os.O_RDWR | os.O_APPEND)
    os.lseek(fd, 2, os.SEEK_SET)
    assert os.write(fd, b"a") == 1 and os.lseek(fd, 0, os.SEEK_CUR) == 11
    os.pwrite(fd, b"b", 0)
    os.ftruncate(fd, 5)
    os.write(fd, b"c")
    os.close(fd)
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, b"d", 0)
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    os.pwrite(fd, b"e", 0)
    fcntl.fcntl(fd, fcntl.F_SETFL, 0)
    os.pwrite(fd, b"f", 1)
    os.close(fd)
    assert read_file(path) == b"df234ce"


def test_append_taken_away(unmounted):
    """F_SETFL takes O_APPEND from a descriptor that was opened with it (not with passthrough: docs/semantics.md)."""
    unmounted.mount("passthrough=off")
    path = unmounted.dir / "file"
    write_file(path, b"01234")
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"5")
    fcntl.fcntl(fd, fcntl.F_SETFL, 0)
    os.pwrite(fd, b"x", 1)
    os.close(fd)
    assert read_file(path) == b"0x2345"


MAKERS = {
    "open": lambda path: os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)),
    "mkdir": os.mkdir, "mkfifo": os.mkfifo, "mknod": os.mknod,
    "symlink": lambda path: os.symlink(str(os.getpid()), path),
    "link": lambda path: os.link(path.parent / "source", path),
    "rename": lambda path: renameat2(path.parent / f"{os.getpid()}-{path.name}", path, RENAME_NOREPLACE),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_one_makes_it(mount, make):
    """Of several processes that make the same name at once exactly one does; the others get EEXIST."""
    write_file(mount.dir / "source", b"x")

    def act(_):
        for number in range(60):
            os.mknod(mount.dir / f"{os.getpid()}-{number}")
        return [errno_of(make, mount.dir / str(number)) for number in range(60)]

    for codes in zip(*at_once(4, act), strict=True):
        assert sorted(codes) == [0, errno.EEXIST, errno.EEXIST, errno.EEXIST]


def test_truncated_when_opened(mount):
    """O_TRUNC empties a file for everybody who has it open, dirty or sealed; O_CREAT without it does not."""
    for how in SETTLES:
        path = mount.dir / how
        write_file(path, random_bytes(1, 100_000))
        mount.settle(how)
        with open(path, "rb", buffering=0) as reader:
            assert len(reader.read(10)) == 10
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
            assert os.fstat(reader.fileno()).st_size == 100_000
            os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
            assert os.fstat(reader.fileno()).st_size == 0
            assert reader.read(10) == b""


def test_tmpfile_that_may_not_be_linked(mount):
    """O_TMPFILE | O_EXCL has no way to a name; a file that lost its last name has none either."""
    fd = os.open(mount.dir, os.O_TMPFILE | os.O_RDWR | os.O_EXCL)
    assert errno_of(link_fd, fd, mount.dir / "named") == errno.ENOENT
    os.close(fd)
    fd = os.open(mount.dir / "file", os.O_CREAT | os.O_RDWR)
    os.unlink(mount.dir / "file")
    assert errno_of(link_fd, fd, mount.dir / "named") == errno.ENOENT
    os.close(fd)
    assert os.listdir(mount.dir) == []


def test_tmpfile_has_attributes(mount):
    """A file without a name has mode, owner, times and xattrs of its own, and keeps them when it gets a name."""
    fd = os.open(mount.dir, os.O_TMPFILE | os.O_RDWR, 0o640)
    assert os.fstat(fd).st_nlink == 0
    os.fchmod(fd, 0o600)
    os.setxattr(fd, "user.a", b"1")
    os.write(fd, b"x" * 10)
    os.utime(fd, ns=(5, 6))
    link_fd(fd, mount.dir / "named")
    link_fd(fd, mount.dir / "second")
    os.close(fd)
    for how in SETTLES:
        mount.settle(how)
        info = os.stat(mount.dir / "second")
        assert (stat.S_IMODE(info.st_mode), info.st_nlink, info.st_size, info.st_mtime_ns) == (0o600, 2, 10, 6)
        assert os.getxattr(mount.dir / "named", "user.a") == b"1"


def test_path_descriptors(mount):
    """O_PATH: stat, openat and execution by it, no reading; it follows the inode through renames and removal."""
    (mount.dir / "d").mkdir()
    write_file(mount.dir / "d" / "file", b"content")
    fd = os.open(mount.dir / "d" / "file", os.O_PATH)
    above = os.open(mount.dir / "d", os.O_PATH)
    assert errno_of(os.read, fd, 1) == errno.EBADF
    os.rename(mount.dir / "d", mount.dir / "moved")
    assert read_file(f"/proc/self/fd/{fd}") == b"content"
    inner = os.open("file", os.O_RDONLY, dir_fd=above)
    assert os.read(inner, 10) == b"content"
    os.unlink("file", dir_fd=above)
    assert os.fstat(fd).st_nlink == 0
    assert os.readlink(f"/proc/self/fd/{above}") == str(mount.dir / "moved")
    for one in (fd, above, inner):
        os.close(one)


def test_file_handles(mount):
    """A descriptor that was passed to another process and one that was inherited share their position."""
    write_file(mount.dir / "file", b"0123456789")
    fd = os.open(mount.dir / "file", os.O_RDONLY)
    assert in_child(os.read, fd, 4) == b"0123"
    left, right = socket.socketpair()
    with left, right:
        socket.send_fds(left, [b"x"], [fd])
        _, (passed,), _, _ = socket.recv_fds(right, 1, 1)
    assert os.read(passed, 2) == b"45"
    assert os.read(fd, 10) == b"6789"
    os.close(fd)
    os.close(passed)
