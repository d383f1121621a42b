"""What a POSIX program needs: attributes, links, special files, open flags, space, xattrs, locks, access."""

import ctypes
import errno
import fcntl
import os
import resource
import socket
import stat
import subprocess
import sys
import time

import pytest

from support.files import (FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, KIB, MIB,
                           RENAME_EXCHANGE, errno_of, fallocate, in_child, libc,
                           link_fd, random_bytes, read_file, renameat2, write_file)

SETTLES = ["dirty", "sealed", "remounted"]


def settle(mount, how):
    if how == "sealed":
        mount.wait_sealed()
    elif how == "remounted":
        mount.remount()


def attributes(path):
    """What stat says that must not change by itself."""
    info = os.lstat(path)
    return (info.st_ino, info.st_mode, info.st_uid, info.st_gid, info.st_nlink, info.st_size,
            info.st_mtime_ns, info.st_ctime_ns)


# ---- attributes ----

@pytest.mark.parametrize("how", SETTLES)
def test_attributes_stay(mount, how):
    """Inode number, mode, owner, links, size, mtime and ctime are the same sealed and remounted."""
    write_file(mount.dir / "file", random_bytes(1, 100_000), 0o640)
    os.mkdir(mount.dir / "directory", 0o710)
    os.symlink("target", mount.dir / "link")
    names = ["file", "directory", "link"]
    before = {name: attributes(mount.dir / name) for name in names}
    settle(mount, how)
    assert {name: attributes(mount.dir / name) for name in names} == before


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
        settle(mount, how)
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


def test_times_move_as_they_should(mount):
    """A write moves mtime and ctime of the file; names coming and going move their directory's."""
    path, directory = mount.dir / "d" / "file", mount.dir / "d"
    directory.mkdir()
    os.utime(directory, ns=(1, 1))
    write_file(path, b"x")
    assert os.stat(directory).st_mtime_ns > 10**18
    os.utime(path, ns=(1, 1))
    changed = os.stat(path).st_ctime_ns
    assert changed > 10**18
    with open(path, "ab") as f:
        f.write(b"y")
    assert os.stat(path).st_mtime_ns > 10**18
    os.utime(directory, ns=(1, 1))
    os.rename(path, directory / "other")
    assert os.stat(directory).st_mtime_ns > 10**18
    os.utime(directory, ns=(1, 1))
    os.chmod(directory / "other", 0o600)
    read_file(directory / "other")
    assert os.stat(directory).st_mtime_ns == 1
    assert os.stat(directory / "other").st_ctime_ns >= changed
    os.unlink(directory / "other")
    assert os.stat(directory).st_mtime_ns > 10**18


def test_mtime_set_on_an_open_file(mount):
    """tar and rsync set times on a file that is still open, or before a rename: they stay."""
    path, target = mount.dir / ".file.tmp", mount.dir / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(fd, b"x" * 100_000)
    os.utime(fd, ns=(5, 123_456_789))
    os.close(fd)
    os.rename(path, target)
    for how in SETTLES:
        settle(mount, how)
        assert os.stat(target).st_mtime_ns == 123_456_789, how


def test_chmod(mount):
    """All twelve mode bits (that the caller may set), on a handle too, and through a remount."""
    path = mount.dir / "file"
    write_file(path, b"x")
    for mode in (0o000, 0o777, 0o4711, 0o1644, 0o2755, 0o640):
        os.chmod(path, mode)
        assert stat.S_IMODE(os.stat(path).st_mode) == mode
    with open(path, "rb") as f:
        os.fchmod(f.fileno(), 0o604)
    mount.remount()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o604


@pytest.mark.root_only
def test_chown(mount):
    """Owner and group, one of them alone, of links too; set-id bits go, as chown(2) says."""
    path, link = mount.dir / "file", mount.dir / "link"
    write_file(path, b"x")
    os.symlink("file", link)
    os.chmod(path, 0o6755)
    os.chown(path, 1234, 5678)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o755
    os.chown(path, -1, 4321)
    os.lchown(link, 77, 88)
    mount.remount()
    assert os.stat(path)[4:6] == (1234, 4321)
    assert os.lstat(link)[4:6] == (77, 88)


def test_umask(mount):
    """New inodes get the caller's umask."""
    before = os.umask(0o027)
    try:
        write_file(mount.dir / "file", b"", 0o666)
        os.mkdir(mount.dir / "directory", 0o777)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(mount.dir / "file").st_mode) == 0o640
    assert stat.S_IMODE(os.stat(mount.dir / "directory").st_mode) == 0o750


def test_owner_of_new_inodes(mount):
    for path in (mount.dir / "file", mount.dir / "directory"):
        path.mkdir() if path.name == "directory" else write_file(path, b"")
        assert os.stat(path)[4:6] == (os.geteuid(), os.getegid())


@pytest.mark.root_only
def test_set_gid_directory(mount):
    """In a directory with set-gid new inodes get its group, and directories the bit."""
    directory = mount.dir / "shared"
    directory.mkdir()
    os.chown(directory, -1, 4242)
    os.chmod(directory, 0o2775)
    write_file(directory / "file", b"")
    (directory / "sub").mkdir()
    assert os.stat(directory / "file").st_gid == 4242
    assert os.stat(directory / "sub").st_gid == 4242
    assert os.stat(directory / "sub").st_mode & stat.S_ISGID


def test_write_drops_set_id_bits(mount):
    """A write by who is not root takes set-user-id away (the kernel asks for it, the driver does it)."""
    path = mount.dir / "file"
    write_file(path, b"x")
    os.chmod(path, 0o4755)
    with open(path, "ab") as f:
        f.write(b"y")
    expected = 0o4755 if os.geteuid() == 0 else 0o755
    assert stat.S_IMODE(os.stat(path).st_mode) == expected


def test_blocks_and_statvfs(mount):
    """st_blocks tells of the bytes; statvfs has room, names of 255 bytes, and numbers that make sense."""
    write_file(mount.dir / "file", random_bytes(1, MIB))
    assert MIB <= os.stat(mount.dir / "file").st_blocks * 512 < 2 * MIB
    mount.wait_sealed()
    assert MIB <= os.stat(mount.dir / "file").st_blocks * 512 < 2 * MIB
    numbers = os.statvfs(mount.dir)
    assert numbers.f_namemax == 255
    assert numbers.f_bsize >= 512 and numbers.f_frsize >= 512
    assert 0 < numbers.f_bavail <= numbers.f_bfree <= numbers.f_blocks
    assert numbers.f_files >= numbers.f_ffree


# ---- links ----

@pytest.mark.parametrize("how", SETTLES)
def test_hard_links(mount, how):
    """Names of one inode: one number, one count, one content, whichever name is written or removed."""
    first, second = mount.dir / "first", mount.dir / "d" / "second"
    second.parent.mkdir()
    write_file(first, random_bytes(1, 100_000))
    settle(mount, how)
    os.link(first, second)
    assert os.stat(first).st_ino == os.stat(second).st_ino
    assert os.stat(first).st_nlink == os.stat(second).st_nlink == 2
    write_file(second, b"new")
    assert read_file(first) == b"new"
    os.unlink(first)
    settle(mount, how)
    assert os.stat(second).st_nlink == 1
    assert read_file(second) == b"new"


def test_link_errors(mount):
    write_file(mount.dir / "file", b"")
    os.mkdir(mount.dir / "directory")
    assert errno_of(os.link, mount.dir / "file", mount.dir / "directory") == errno.EEXIST
    assert errno_of(os.link, mount.dir / "directory", mount.dir / "x") == errno.EPERM
    assert errno_of(os.link, mount.dir / "none", mount.dir / "x") == errno.ENOENT


def test_nlink_of_directories(mount):
    """2 + subdirectories, as they come, go and move."""
    top, other = mount.dir / "top", mount.dir / "other"
    top.mkdir()
    other.mkdir()
    root = os.stat(mount.dir).st_nlink
    assert root == 4
    (top / "a").mkdir()
    (top / "b").mkdir()
    write_file(top / "file", b"")
    assert os.stat(top).st_nlink == 4
    os.rename(top / "a", other / "a")
    assert (os.stat(top).st_nlink, os.stat(other).st_nlink) == (3, 3)
    (top / "b").rmdir()
    assert os.stat(top).st_nlink == 2
    renameat2(top / "file", other / "a", RENAME_EXCHANGE)
    assert (os.stat(top).st_nlink, os.stat(other).st_nlink) == (3, 2)


@pytest.mark.parametrize("target", ["x", "../a b", "/" + "y" * 4000, "ü" * 100])
def test_symlinks(mount, target):
    """A link's text is kept as it is, its length is its size."""
    link = mount.dir / "link"
    os.symlink(target, link)
    mount.remount()
    assert os.readlink(link) == target
    assert os.lstat(link).st_size == len(os.fsencode(target))


def test_symlinks_are_followed(mount):
    (mount.dir / "d").mkdir()
    write_file(mount.dir / "d" / "file", b"content")
    os.symlink("d", mount.dir / "to-d")
    os.symlink("to-d/file", mount.dir / "to-file")
    os.symlink("loop", mount.dir / "loop")
    assert read_file(mount.dir / "to-file") == b"content"
    assert errno_of(os.stat, mount.dir / "loop") == errno.ELOOP
    assert errno_of(os.readlink, mount.dir / "d") == errno.EINVAL


# ---- special files ----

def test_fifo_and_socket(mount):
    """Fifos and sockets are there, keep their type, and a fifo works."""
    fifo, path = mount.dir / "fifo", mount.dir / "socket"
    os.mkfifo(fifo, 0o600)
    before = os.getcwd()
    os.chdir(mount.dir)  # the path of a socket is at most 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket")
    finally:
        os.chdir(before)
    end = os.open(fifo, os.O_RDWR)
    os.write(end, b"through")
    assert os.read(end, 10) == b"through"
    os.close(end)
    mount.remount()
    assert stat.S_ISFIFO(os.lstat(fifo).st_mode)
    assert stat.S_ISSOCK(os.lstat(path).st_mode)


@pytest.mark.root_only
def test_devices(mount):
    """Device numbers are kept."""
    os.mknod(mount.dir / "null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(mount.dir / "disk", 0o600 | stat.S_IFBLK, os.makedev(300, 70_000))
    mount.remount()
    assert os.lstat(mount.dir / "null").st_rdev == os.makedev(1, 3)
    assert os.lstat(mount.dir / "disk").st_rdev == os.makedev(300, 70_000)


def test_mknod_of_a_regular_file(mount):
    os.mknod(mount.dir / "file", 0o640 | stat.S_IFREG)
    assert os.stat(mount.dir / "file").st_size == 0
    write_file(mount.dir / "file", b"x")
    assert read_file(mount.dir / "file") == b"x"


# ---- opening ----

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
    """Two thousand files open at once, each with its own content: no descriptor runs out."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = 2000
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


# ---- space and seeking ----

def test_fallocate(mount):
    """Allocate (with and without the size), punch, zero: sizes and bytes as fallocate(2) says."""
    path = mount.dir / "file"
    content = bytearray(random_bytes(1, 300_000))
    write_file(path, content)
    fd = os.open(path, os.O_RDWR)
    os.posix_fallocate(fd, 0, 400_000)
    content += bytes(100_000)
    fallocate(fd, FALLOC_KEEP_SIZE, 0, MIB)
    fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 5000, 100_000)
    content[5000:105_000] = bytes(100_000)
    fallocate(fd, FALLOC_ZERO_RANGE, 200_000, 300_000)
    content[200_000:] = bytes(300_000)
    assert os.fstat(fd).st_size == len(content)
    assert os.pread(fd, MIB, 0) == content
    assert errno_of(fallocate, fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 0, 0) == errno.EINVAL
    os.close(fd)
    mount.remount()
    assert read_file(path) == content


@pytest.mark.parametrize("how", SETTLES)
def test_seek_data_and_hole(mount, how):
    """SEEK_DATA and SEEK_HOLE never call data a hole, and see a great hole; past the end is ENXIO."""
    path = mount.dir / "file"
    with open(path, "wb") as f:
        f.write(b"x" * 4096)
        f.seek(8 * MIB)
        f.write(b"y" * 4096)
    settle(mount, how)
    size = 8 * MIB + 4096
    with open(path, "rb") as f:
        fd = f.fileno()
        assert os.lseek(fd, 0, os.SEEK_DATA) == 0
        assert os.lseek(fd, 100, os.SEEK_DATA) == 100
        hole = os.lseek(fd, 0, os.SEEK_HOLE)
        assert 4096 <= hole <= 128 * KIB
        assert 7 * MIB < os.lseek(fd, hole, os.SEEK_DATA) <= 8 * MIB
        assert os.lseek(fd, 8 * MIB, os.SEEK_HOLE) == size
        assert errno_of(os.lseek, fd, size, os.SEEK_DATA) == errno.ENXIO
        assert errno_of(os.lseek, fd, size, os.SEEK_HOLE) == errno.ENXIO
        assert os.lseek(fd, -1, os.SEEK_END) == size - 1


# ---- extended attributes ----

@pytest.mark.parametrize("kind", ["file", "directory"])
def test_xattrs(mount, kind):
    """Create, replace, list, remove; the errors of setxattr(2); kept through sealing and remount."""
    path = mount.dir / kind
    path.mkdir() if kind == "directory" else write_file(path, b"x" * 100_000)
    os.setxattr(path, "user.one", b"1", os.XATTR_CREATE)
    assert errno_of(os.setxattr, path, "user.one", b"2", os.XATTR_CREATE) == errno.EEXIST
    assert errno_of(os.setxattr, path, "user.two", b"2", os.XATTR_REPLACE) == errno.ENODATA
    os.setxattr(path, "user.one", b"replaced", os.XATTR_REPLACE)
    os.setxattr(path, "user.empty", b"")
    os.setxattr(path, "user.binary", bytes(range(256)))
    settle(mount, "sealed")
    mount.remount()
    assert sorted(os.listxattr(path)) == ["user.binary", "user.empty", "user.one"]
    assert os.getxattr(path, "user.one") == b"replaced"
    assert os.getxattr(path, "user.empty") == b""
    assert os.getxattr(path, "user.binary") == bytes(range(256))
    os.removexattr(path, "user.one")
    assert errno_of(os.getxattr, path, "user.one") == errno.ENODATA
    assert errno_of(os.removexattr, path, "user.one") == errno.ENODATA


def test_large_and_many_xattrs(mount):
    """A value of 64 KiB, a name of 255 bytes, 200 of them; ERANGE for a buffer that is too small."""
    path = mount.dir / "file"
    write_file(path, b"x")
    large = random_bytes(1, 65536)
    os.setxattr(path, "user.large", large)
    os.setxattr(path, "user." + "n" * 250, b"long")
    for number in range(200):
        os.setxattr(path, f"user.{number}", b"%d" % number)
    mount.remount()
    assert os.getxattr(path, "user.large") == large
    assert len(os.listxattr(path)) == 202
    buffer = ctypes.create_string_buffer(10)
    assert libc.getxattr(os.fsencode(path), b"user.large", buffer, 10) == -1
    assert ctypes.get_errno() == errno.ERANGE
    assert libc.getxattr(os.fsencode(path), b"user.large", None, 0) == 65536


def test_removed_with_its_xattrs(mount):
    """Xattrs go with their inode (fsck would find what stays)."""
    write_file(mount.dir / "file", b"x")
    os.setxattr(mount.dir / "file", "user.a", b"1")
    os.unlink(mount.dir / "file")


# ---- locks ----

def try_lock(path, kind):
    """In a process of its own: is a lock of `path` to be had?"""
    script = ("import fcntl, os, sys\n"
              "fd = os.open(sys.argv[1], os.O_RDWR)\n"
              "take = getattr(fcntl, sys.argv[2])\n"
              "try:\n    take(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
              "except OSError:\n    sys.exit(7)\n")
    return subprocess.run([sys.executable, "-c", script, path, kind]).returncode == 0


@pytest.mark.parametrize("kind", ["flock", "lockf"])
def test_locks(mount, kind):
    """flock and fcntl locks keep other processes out until they are given back."""
    path = mount.dir / "lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    take = getattr(fcntl, kind)
    take(fd, fcntl.LOCK_EX)
    assert not try_lock(path, kind)
    take(fd, fcntl.LOCK_UN)
    assert try_lock(path, kind)
    take(fd, fcntl.LOCK_EX)
    os.close(fd)
    assert try_lock(path, kind)


# ---- access by others ----

def let_others_pass(directory):
    """Others may go through `directory` and what is above it."""
    for path in [directory, *directory.parents]:
        if not path.stat().st_mode & 0o001:
            path.chmod(path.stat().st_mode | 0o011)


@pytest.mark.root_only
def test_access_by_mode(unmounted, other_user):
    """With allow_other another user gets what the modes allow, and no more."""
    let_others_pass(unmounted.dir.parent)
    unmounted.mount("allow_other")
    root = unmounted.dir
    os.chmod(root, 0o755)
    write_file(root / "open", b"x")
    os.chmod(root / "open", 0o644)
    write_file(root / "closed", b"x", 0o600)
    (root / "inbox").mkdir()
    os.chmod(root / "inbox", 0o1777)
    write_file(root / "inbox" / "mine", b"x")

    def act():
        return {
            "read open": errno_of(read_file, root / "open"),
            "read closed": errno_of(read_file, root / "closed"),
            "write open": errno_of(os.open, root / "open", os.O_WRONLY),
            "create in root": errno_of(write_file, root / "new", b""),
            "create in inbox": errno_of(write_file, root / "inbox" / "new", b"theirs"),
            "remove another's in inbox": errno_of(os.unlink, root / "inbox" / "mine"),
            "chmod another's": errno_of(os.chmod, root / "open", 0o777),
            "utime another's": errno_of(os.utime, root / "open", (1, 1)),
            "chown": errno_of(os.chown, root / "inbox" / "new", 0, 0),
            "access": os.access(root / "open", os.W_OK),
        }

    assert in_child(act, user=other_user) == {
        "read open": 0, "read closed": errno.EACCES, "write open": errno.EACCES,
        "create in root": errno.EACCES, "create in inbox": 0,
        "remove another's in inbox": errno.EPERM, "chmod another's": errno.EPERM,
        "utime another's": errno.EPERM, "chown": errno.EPERM, "access": False,
    }
    info = os.stat(root / "inbox" / "new")
    assert (info.st_uid, info.st_gid) == (other_user.pw_uid, other_user.pw_gid)


@pytest.mark.root_only
def test_no_access_without_allow_other(mount, other_user):
    """Without allow_other nobody but the one who mounted gets in."""
    let_others_pass(mount.dir.parent)

    def act():
        return errno_of(os.listdir, mount.dir)

    assert in_child(act, user=other_user) == errno.EACCES


def test_read_only_mount(unmounted):
    """-o ro: all can be read, nothing changed."""
    unmounted.mount()
    write_file(unmounted.dir / "file", b"x" * 100_000)
    unmounted.umount()
    unmounted.mount("ro")
    root = unmounted.dir
    assert read_file(root / "file") == b"x" * 100_000
    for call in ((write_file, root / "new", b""), (os.unlink, root / "file"), (os.mkdir, root / "d"),
                 (os.chmod, root / "file", 0o600), (os.rename, root / "file", root / "x"),
                 (os.truncate, root / "file", 0), (os.setxattr, root / "file", "user.a", b"")):
        assert errno_of(*call) == errno.EROFS, call
