"""Every refusal: the errno that Linux says, the same as on the disk, and nothing changed by it."""

import errno
import mmap
import os
import resource
import signal
import socket
import stat
import subprocess

import pytest

from support.files import (FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, RENAME_EXCHANGE, RENAME_NOREPLACE, errno_of,
                           fallocate, in_child, link_fd, read_file, renameat2, write_file)

E = errno
LONG = "x" * 256
DEEP = "y/" * 2048  # a path of 4096 bytes
UNKNOWN_FLAG = 1 << 10


def make_tree(root):
    """What the calls below are made on."""
    write_file(root / "file", b"content")
    write_file(root / "other", b"content of the other")
    for name in ("empty", "full/sub"):
        (root / name).mkdir(parents=True)
    write_file(root / "full/sub/x", b"x")
    for name, target in (("link", "file"), ("dangling", "nowhere"), ("loop", "loop"), ("one", "two"),
                         ("two", "one"), ("to-full", "full")):
        os.symlink(target, root / name)
    os.mkfifo(root / "fifo")
    here = os.getcwd()
    os.chdir(root)  # the path of a socket is at most 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket")
    finally:
        os.chdir(here)


def picture(root):
    """{path: (mode, links, what it holds)}"""
    found = {}
    for path in sorted(root.rglob("*")):
        info = os.lstat(path)
        held = os.readlink(path) if path.is_symlink() else read_file(path) if stat.S_ISREG(info.st_mode) else None
        found[str(path.relative_to(root))] = (info.st_mode, info.st_nlink, held,
                                              os.listxattr(path, follow_symlinks=False))
    return found


def opened(flags, then=None, mode=0o600):
    """A call that opens a name, and does something to the descriptor."""
    def call(path):
        fd = os.open(path, flags, mode)
        try:
            if then is not None:
                then(fd)
        finally:
            os.close(fd)
    return call


def renamed(source, target, flags=0):
    """A call that renames by strings: what a Path would tidy up stays in them."""
    return lambda root: renameat2(f"{root}/{source}", f"{root}/{target}", flags)


def on(name, function, *rest):
    """`function` on the name as it is written."""
    return lambda root: function(f"{root}/{name}", *rest)


def copy_range(source, target, count, offset_in, offset_out):
    def call(root):
        with open(f"{root}/{source}", "rb") as a, open(f"{root}/{target}", "r+b") as b:
            os.copy_file_range(a.fileno(), b.fileno(), count, offset_in, offset_out)
    return call


def map_writable(fd):
    mmap.mmap(fd, 7, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE).close()


W, R, RW, CREATE = os.O_WRONLY, os.O_RDONLY, os.O_RDWR, os.O_CREAT
CALLS = {
    "open": [
        (on("none", os.open, R), E.ENOENT), (on("none/x", os.open, R), E.ENOENT),
        (on("none/x", os.open, W | CREATE), E.ENOENT), (on("file/x", os.open, R), E.ENOTDIR),
        (on("file/x", os.open, W | CREATE), E.ENOTDIR), (on("file/", os.open, R), E.ENOTDIR),
        (on("full", os.open, W), E.EISDIR), (on("full", os.open, R | CREATE), E.EISDIR),
        (on("none/", os.open, W | CREATE), E.EISDIR), (on("file", os.open, W | CREATE | os.O_EXCL), E.EEXIST),
        (on("dangling", os.open, W | CREATE | os.O_EXCL), E.EEXIST), (on("dangling", os.open, R), E.ENOENT),
        (on("link", os.open, R | os.O_NOFOLLOW), E.ELOOP), (on("loop", os.open, R), E.ELOOP),
        (on("one", os.open, W | CREATE), E.ELOOP), (on("loop/x", os.open, R), E.ELOOP),
        (on("file", os.open, R | os.O_DIRECTORY), E.ENOTDIR),
        (on("link", os.open, R | os.O_DIRECTORY), E.ENOTDIR),
        (on("fifo", os.open, W | os.O_NONBLOCK), E.ENXIO), (on("socket", os.open, R), E.ENXIO),
        (on(LONG, os.open, R), E.ENAMETOOLONG), (on(LONG, os.open, W | CREATE), E.ENAMETOOLONG),
        (on(DEEP, os.open, R), E.ENAMETOOLONG), (on(f"{LONG}/x", os.open, R), E.ENAMETOOLONG),
        (on("file", os.open, RW | os.O_TMPFILE), E.ENOTDIR), (on("full", os.open, R | os.O_TMPFILE), E.EINVAL),
        (on("none", os.open, RW | os.O_TMPFILE), E.ENOENT),
    ],
    "names": [
        (on("file", os.mkdir), E.EEXIST), (on("full", os.mkdir), E.EEXIST), (on("dangling", os.mkdir), E.EEXIST),
        (on("none/x", os.mkdir), E.ENOENT), (on("file/x", os.mkdir), E.ENOTDIR), (on(".", os.mkdir), E.EEXIST),
        (on(LONG, os.mkdir), E.ENAMETOOLONG), (on("loop/x", os.mkdir), E.ELOOP),
        (on("full", os.rmdir), E.ENOTEMPTY), (on("file", os.rmdir), E.ENOTDIR), (on("none", os.rmdir), E.ENOENT),
        (on("to-full", os.rmdir), E.ENOTDIR), (on("empty/.", os.rmdir), E.EINVAL),
        (on("full/sub/..", os.rmdir), E.ENOTEMPTY), (on(LONG, os.rmdir), E.ENAMETOOLONG),
        (on("full", os.unlink), E.EISDIR), (on("none", os.unlink), E.ENOENT), (on("file/", os.unlink), E.ENOTDIR),
        (on("file/x", os.unlink), E.ENOTDIR), (on(LONG, os.unlink), E.ENAMETOOLONG),
        (on("loop/x", os.unlink), E.ELOOP),
        (on("file", os.mknod), E.EEXIST), (on("dangling", os.mkfifo), E.EEXIST), (on("none/x", os.mknod), E.ENOENT),
        (lambda root: os.symlink("t", root / "file"), E.EEXIST), (lambda root: os.symlink("", root / "new"), E.ENOENT),
        (lambda root: os.symlink("t" * 4096, root / "new"), E.ENAMETOOLONG),
        (lambda root: os.symlink("t", root / LONG), E.ENAMETOOLONG),
        (lambda root: os.symlink("t", root / "none/x"), E.ENOENT),
        (on("file", os.readlink), E.EINVAL), (on("full", os.readlink), E.EINVAL), (on("none", os.readlink), E.ENOENT),
        (lambda root: os.link(root / "file", root / "other"), E.EEXIST),
        (lambda root: os.link(root / "file", root / "dangling"), E.EEXIST),
        (lambda root: os.link(root / "full", root / "new"), E.EPERM),
        (lambda root: os.link(root / "none", root / "new"), E.ENOENT),
        (lambda root: os.link(root / "file", root / "none/new"), E.ENOENT),
        (lambda root: os.link(root / "file", root / "other/new"), E.ENOTDIR),
        (lambda root: os.link(root / "file", root / LONG), E.ENAMETOOLONG),
        (on("file", os.chdir), E.ENOTDIR), (on("none", os.listdir), E.ENOENT), (on("file", os.listdir), E.ENOTDIR),
        (on("loop", os.stat), E.ELOOP), (on("file/.", os.stat), E.ENOTDIR),
    ],
    "rename": [
        (renamed("none", "new"), E.ENOENT), (renamed("file", "none/new"), E.ENOENT),
        (renamed("file", "other/new"), E.ENOTDIR), (renamed("file/x", "new"), E.ENOTDIR),
        (renamed("file", "empty"), E.EISDIR), (renamed("empty", "file"), E.ENOTDIR),
        (renamed("empty", "link"), E.ENOTDIR), (renamed("empty", "full"), E.ENOTEMPTY),
        (renamed("full", "full/new"), E.EINVAL), (renamed("full", "full/sub/new"), E.EINVAL),
        (renamed("full/sub", "full"), E.ENOTEMPTY), (renamed("full/sub/x", "full/sub"), E.ENOTEMPTY),
        (renamed("empty/.", "new"), E.EBUSY), (renamed("empty", "full/.."), E.EBUSY),
        (renamed("file", "new/"), E.ENOTDIR), (renamed("file/", "new"), E.ENOTDIR),
        (renamed("file", LONG), E.ENAMETOOLONG), (renamed(LONG, "new"), E.ENAMETOOLONG),
        (renamed("file", "loop/new"), E.ELOOP),
        (renamed("file", "other", RENAME_NOREPLACE), E.EEXIST),
        (renamed("file", "file", RENAME_NOREPLACE), E.EEXIST),
        (renamed("empty", "dangling", RENAME_NOREPLACE), E.EEXIST),
        (renamed("file", "new", RENAME_EXCHANGE), E.ENOENT), (renamed("none", "file", RENAME_EXCHANGE), E.ENOENT),
        (renamed("full", "full/sub", RENAME_EXCHANGE), E.EINVAL),
        (renamed("full/sub", "full", RENAME_EXCHANGE), E.EINVAL),
        (renamed("file", "other", RENAME_EXCHANGE | RENAME_NOREPLACE), E.EINVAL),
        (renamed("file", "other", UNKNOWN_FLAG), E.EINVAL),
    ],
    "bytes": [
        (on("full", os.truncate, 0), E.EISDIR), (on("none", os.truncate, 0), E.ENOENT),
        (on("file", os.truncate, -1), E.EINVAL), (on("file", os.truncate, (1 << 63) - 1), E.EFBIG),
        (on("fifo", os.truncate, 0), E.EINVAL),
        (on("file", opened(R, lambda fd: os.ftruncate(fd, 0))), E.EINVAL),
        (on("file", opened(R, lambda fd: os.write(fd, b"x"))), E.EBADF),
        (on("file", opened(W, lambda fd: os.read(fd, 1))), E.EBADF),
        (on("full", opened(R, lambda fd: os.read(fd, 1))), E.EISDIR),
        (on("file", opened(RW, lambda fd: os.pread(fd, 1, -1))), E.EINVAL),
        (on("file", opened(RW, lambda fd: os.pwrite(fd, b"x", -1))), E.EINVAL),
        (on("file", opened(RW, lambda fd: os.pwrite(fd, b"x", (1 << 63) - 2))), E.EFBIG),
        (on("file", opened(R, lambda fd: os.lseek(fd, -1, os.SEEK_SET))), E.EINVAL),
        (on("file", opened(R, lambda fd: os.lseek(fd, 7, os.SEEK_DATA))), E.ENXIO),
        (on("file", opened(R, lambda fd: os.lseek(fd, 8, os.SEEK_HOLE))), E.ENXIO),
        (on("file", opened(R, lambda fd: os.lseek(fd, -1, os.SEEK_DATA))), E.ENXIO),
        (on("file", opened(R, lambda fd: fallocate(fd, 0, 0, 1))), E.EBADF),
        (on("file", opened(RW, lambda fd: fallocate(fd, 0, 0, 0))), E.EINVAL),
        (on("file", opened(RW, lambda fd: fallocate(fd, 0, -1, 1))), E.EINVAL),
        (on("file", opened(RW, lambda fd: fallocate(fd, 0, 1, (1 << 63) - 1))), E.EFBIG),
        (on("file", opened(RW, lambda fd: fallocate(fd, FALLOC_PUNCH_HOLE, 0, 1))), E.EOPNOTSUPP),
        (on("file", opened(RW, lambda fd: fallocate(fd, UNKNOWN_FLAG << 8, 0, 1))), E.EOPNOTSUPP),
        (on("fifo", opened(RW, lambda fd: fallocate(fd, FALLOC_KEEP_SIZE, 0, 1))), E.ESPIPE),
        (on("file", opened(R, map_writable)), E.EACCES), (on("full", opened(R, lambda fd: mmap.mmap(
            fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ))), E.ENODEV),
        (copy_range("file", "file", 4, 0, 2), E.EINVAL), (copy_range("other", "other", 9, 3, 0), E.EINVAL),
        (on("file", opened(R, lambda fd: os.listdir(fd))), E.ENOTDIR),
    ],
    "attributes": [
        (on("none", os.chmod, 0o600), E.ENOENT), (on("dangling", os.chmod, 0o600), E.ENOENT),
        (on("file/x", os.chmod, 0o600), E.ENOTDIR), (on("loop", os.utime, (1, 1)), E.ELOOP),
        (on("none", os.utime, (1, 1)), E.ENOENT), (on("none", os.chown, -1, -1), E.ENOENT),
        (on(LONG, os.stat), E.ENAMETOOLONG), (on("file/x", os.statvfs), E.ENOTDIR),
        (on("none", os.getxattr, "user.a"), E.ENOENT), (on("file", os.getxattr, "user.a"), E.ENODATA),
        (on("file", os.removexattr, "user.a"), E.ENODATA),
        (on("file", os.setxattr, "user.a", b"1", os.XATTR_REPLACE), E.ENODATA),
        (on("file", os.setxattr, "user." + "n" * 251, b"1"), E.ERANGE),
        (on("file", os.setxattr, "user.a", bytes(65537)), E.E2BIG),
        (on("file", os.setxattr, "other.a", b"1"), E.EOPNOTSUPP),
        (on("file", os.setxattr, "a", b"1"), E.EOPNOTSUPP), (on("file", os.setxattr, "", b"1"), E.ERANGE),
        (on("fifo", os.setxattr, "user.a", b"1"), E.EPERM), (on("fifo", os.getxattr, "user.a"), E.ENODATA),
        (lambda root: os.setxattr(root / "link", "user.a", b"1", follow_symlinks=False), E.EPERM),
        (lambda root: os.getxattr(root / "link", "user.a", follow_symlinks=False), E.ENODATA),
    ],
    "running": [
        (on("file", os.execv, ["x"]), E.EACCES), (on("full", os.execv, ["x"]), E.EACCES),
        (on("none", os.execv, ["x"]), E.ENOENT), (on("file/x", os.execv, ["x"]), E.ENOTDIR),
    ],
}


@pytest.mark.parametrize("calls", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize("how", ["dirty", "sealed"])
def test_errors(mount, plain, calls, how):
    """The errno of each call, in a tree that is still dirty and in one that is sealed."""
    for root in (plain, mount.dir):
        make_tree(root)
    mount.settle(how)
    before = picture(mount.dir)
    assert before == picture(plain)
    found, on_disk = ([E.errorcode.get(errno_of(call, root)) for call, _ in calls] for root in (mount.dir, plain))
    assert list(enumerate(found)) == list(enumerate(on_disk))
    assert list(enumerate(found)) == [(number, E.errorcode[code]) for number, (_, code) in enumerate(calls)]
    assert picture(mount.dir) == before


def test_across_file_systems(mount, plain):
    """EXDEV for names on another file system, both ways."""
    for root in (plain, mount.dir):
        make_tree(root)
    for source, target in ((mount.dir, plain), (plain, mount.dir)):
        assert errno_of(os.rename, source / "file", target / "new") == E.EXDEV
        assert errno_of(os.rename, source / "full", target / "new") == E.EXDEV
        assert errno_of(renameat2, source / "file", target / "other", RENAME_EXCHANGE) == E.EXDEV
        assert errno_of(os.link, source / "file", target / "new") == E.EXDEV
        with open(source / "file", "rb") as f:
            assert errno_of(link_fd, f.fileno(), target / "new") == E.EXDEV


def test_running_program(mount):
    """ETXTBSY for writing a program that runs, and for running one that is open for writing."""
    program = mount.dir / "program"
    write_file(program, read_file("/bin/sleep"), 0o755)
    with subprocess.Popen([program, "60"]) as process:
        assert errno_of(os.open, program, os.O_WRONLY) == E.ETXTBSY
        assert errno_of(os.truncate, program, 0) == E.ETXTBSY
        os.rename(program, mount.dir / "moved")  # its name may be changed, and taken by another
        write_file(program, b"another")
        process.kill()
    program = mount.dir / "moved"
    with open(program, "r+b"):
        assert in_child(errno_of, os.execv, program, ["moved", "0"]) == E.ETXTBSY
    assert subprocess.run([program, "0"]).returncode == 0


def test_file_size_limit(mount, plain):
    """RLIMIT_FSIZE: SIGXFSZ and EFBIG past it, what is below it is written."""
    def act(root):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        fd = os.open(root / "file", os.O_RDWR | os.O_CREAT)
        return [os.write(fd, b"x" * 8000), errno_of(os.write, fd, b"x"), errno_of(os.ftruncate, fd, 5001),
                errno_of(fallocate, fd, 0, 0, 6000), os.fstat(fd).st_size]

    expected = [5000, E.EFBIG, E.EFBIG, E.EFBIG, 5000]
    assert [in_child(act, root) for root in (plain, mount.dir)] == [expected, expected]


def test_nothing_below_a_removed_directory(mount, plain):
    """By a descriptor of a removed directory: it is empty, and nothing comes to be in it."""
    def act(root):
        (root / "d").mkdir()
        write_file(root / "file", b"x")
        fd = os.open(root / "d", os.O_RDONLY)
        os.rmdir(root / "d")
        found = [os.listdir(fd), os.fstat(fd).st_nlink]
        for call in ((os.mkdir, "x"), (os.open, "x", os.O_CREAT | os.O_WRONLY), (os.mkfifo, "x"),
                     (os.stat, "x")):
            found.append(errno_of(*call, dir_fd=fd))
        found += [errno_of(os.symlink, "t", "x", dir_fd=fd), errno_of(os.link, root / "file", "x", dst_dir_fd=fd),
                  errno_of(os.rename, root / "file", "x", dst_dir_fd=fd)]
        os.close(fd)
        return found

    expected = [[], 0, *[E.ENOENT] * 7]
    assert [act(root) for root in (plain, mount.dir)] == [expected, expected]
