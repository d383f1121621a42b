"""Attributes: mode, owner, set-id bits, size, blocks; kept through sealing and remounts."""

import os
import stat

import pytest

from support.files import MIB, random_bytes, write_file
from support.mounts import SETTLES


def attributes(path):
    """What stat says that must not change by itself."""
    info = os.lstat(path)
    return (info.st_ino, info.st_mode, info.st_uid, info.st_gid, info.st_nlink, info.st_size,
            info.st_mtime_ns, info.st_ctime_ns)


@pytest.mark.parametrize("how", SETTLES)
def test_attributes_stay(mount, how):
    """Inode number, mode, owner, links, size, mtime and ctime are the same sealed and remounted."""
    write_file(mount.dir / "file", random_bytes(1, 100_000), 0o640)
    os.mkdir(mount.dir / "directory", 0o710)
    os.symlink("target", mount.dir / "link")
    names = ["file", "directory", "link"]
    before = {name: attributes(mount.dir / name) for name in names}
    mount.settle(how)
    assert {name: attributes(mount.dir / name) for name in names} == before


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
