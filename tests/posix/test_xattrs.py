"""Extended attributes of every size, on every kind of inode."""

import ctypes
import errno
import os
import stat

import pytest

from support.files import at_once, errno_of, libc, random_bytes, write_file
from support.mounts import SETTLES


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
    mount.wait_sealed()
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


SIZES = sorted({0, 1, 255, 256, 65535, 65536} | {(1 << n) + d for n in range(2, 16) for d in (-1, 0, 1)})


def test_values_of_every_size(mount):
    """A value of any size up to 64 KiB, replaced by longer and by shorter ones; one byte more is E2BIG."""
    path = mount.dir / "file"
    write_file(path, b"x" * 1000)
    for size in SIZES:
        os.setxattr(path, f"user.{size}", random_bytes(size, size))
        os.setxattr(path, "user.up", random_bytes(size, size))
        assert os.getxattr(path, "user.up") == random_bytes(size, size)
    for size in reversed(SIZES):
        os.setxattr(path, "user.up", random_bytes(size, size), os.XATTR_REPLACE)
        assert os.getxattr(path, "user.up") == random_bytes(size, size)
    assert errno_of(os.setxattr, path, "user.more", bytes(65537)) == errno.E2BIG
    for how in SETTLES:
        mount.settle(how)
        assert {name: os.getxattr(path, name) for name in os.listxattr(path)} == {
            f"user.{size}": random_bytes(size, size) for size in SIZES} | {"user.up": b""}


@pytest.mark.parametrize("length", [6, 7, 100, 254, 255])
def test_names_of_every_length(mount, length):
    """Names up to 255 bytes, of any bytes but NUL; the list of 64 KiB of them is whole."""
    path = os.fsencode(mount.dir / "file")
    write_file(path, b"x")
    count = min(200, 65536 // (length + 1))
    names = [b"user." + b"%d" % number for number in range(10 ** min(length - 5, 1))]
    if length > 7:
        names = [b"user." + (b"%d-\xff\xc3\xbc" % number).ljust(length - 5, b"n") for number in range(count)]
    for name in names:
        os.setxattr(path, name, name)
    mount.remount()
    assert sorted(os.fsencode(name) for name in os.listxattr(path)) == sorted(names)
    assert all(os.getxattr(path, name) == name for name in names)


def test_list_too_long(mount):
    """More names than listxattr(2) can tell of are refused when they are set, or E2BIG when listed: none is lost."""
    path = os.fsencode(mount.dir / "file")
    write_file(path, b"x")
    names = [b"user." + (b"%d" % number).ljust(245, b"n") for number in range(300)]
    codes = [errno_of(os.setxattr, path, name, b"1") for name in names]
    there = [name for name, code in zip(names, codes, strict=True) if code == 0]
    assert set(codes) <= {0, errno.ENOSPC} and len(there) >= 65536 // 251
    assert all(os.getxattr(path, name) == b"1" for name in there)
    if len(there) * 251 > 65536:
        assert errno_of(os.listxattr, path) == errno.E2BIG
    else:
        assert sorted(os.fsencode(name) for name in os.listxattr(path)) == sorted(there)


@pytest.mark.root_only
def test_namespaces(mount):
    """trusted.* and security.* for root, on links, fifos and devices, too; user.* is not for those."""
    write_file(mount.dir / "file", b"x")
    os.symlink("file", mount.dir / "link")
    os.mkfifo(mount.dir / "fifo")
    os.mknod(mount.dir / "null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    names = ("file", "link", "fifo", "null")
    for name in names:
        os.setxattr(mount.dir / name, "trusted.a", name.encode(), follow_symlinks=False)
        if name != "file":
            assert errno_of(os.setxattr, mount.dir / name, "user.a", b"1", follow_symlinks=False) == errno.EPERM
    os.setxattr(mount.dir / "file", "security.a", b"s")
    mount.remount()
    for name in names:
        assert os.getxattr(mount.dir / name, "trusted.a", follow_symlinks=False) == name.encode()
    assert sorted(os.listxattr(mount.dir / "file")) == ["security.a", "trusted.a"]
    assert errno_of(os.getxattr, mount.dir / "link", "security.a", follow_symlinks=False) == errno.ENODATA


def test_same_on_every_name(mount):
    """Xattrs are the inode's: seen by each hard link, through a link, by a descriptor, after rename and unlink."""
    path = mount.dir / "file"
    write_file(path, b"x")
    os.setxattr(path, "user.a", b"1")
    os.link(path, mount.dir / "second")
    os.symlink("second", mount.dir / "link")
    assert os.getxattr(mount.dir / "link", "user.a") == b"1"
    fd = os.open(path, os.O_RDONLY)
    os.rename(path, mount.dir / "moved")
    os.setxattr(fd, "user.b", b"2")
    os.unlink(mount.dir / "moved")
    assert os.getxattr(mount.dir / "second", "user.b") == b"2"
    os.unlink(mount.dir / "second")
    os.setxattr(fd, "user.c", b"3")
    assert sorted(os.listxattr(fd)) == ["user.a", "user.b", "user.c"]
    os.close(fd)


def test_created_or_replaced_by_one(mount):
    """XATTR_CREATE by several processes at once: one succeeds."""
    write_file(mount.dir / "file", b"x")

    def act(_):
        return [errno_of(os.setxattr, mount.dir / "file", f"user.{number}", b"1", os.XATTR_CREATE)
                for number in range(50)]

    for codes in zip(*at_once(4, act), strict=True):
        assert sorted(codes) == [0, errno.EEXIST, errno.EEXIST, errno.EEXIST]
