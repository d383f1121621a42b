"""Hard links, symbolic links and link counts."""

import errno
import os

import pytest

from support.files import RENAME_EXCHANGE, errno_of, link_followed, random_bytes, read_file, renameat2, write_file
from support.mounts import SETTLES


@pytest.mark.parametrize("how", SETTLES)
def test_hard_links(mount, how):
    """Names of one inode: one number, one count, one content, whichever name is written or removed."""
    first, second = mount.dir / "first", mount.dir / "d" / "second"
    second.parent.mkdir()
    write_file(first, random_bytes(1, 100_000))
    mount.settle(how)
    os.link(first, second)
    assert os.stat(first).st_ino == os.stat(second).st_ino
    assert os.stat(first).st_nlink == os.stat(second).st_nlink == 2
    write_file(second, b"new")
    assert read_file(first) == b"new"
    os.unlink(first)
    mount.settle(how)
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


def test_links_between_directories(mount):
    """Names of one inode in many directories: any may be renamed, replaced and removed, the count follows."""
    for number in range(50):
        (mount.dir / f"d{number}").mkdir()
    write_file(mount.dir / "file", b"content")
    for number in range(50):
        os.link(mount.dir / "file", mount.dir / f"d{number}" / "name")
    assert os.stat(mount.dir / "file").st_nlink == 51
    os.rename(mount.dir / "d0/name", mount.dir / "d1/other")
    write_file(mount.dir / "new", b"new")
    os.rename(mount.dir / "new", mount.dir / "d2/name")
    os.unlink(mount.dir / "d3/name")
    mount.remount()
    assert os.stat(mount.dir / "file").st_nlink == 49
    inode = os.stat(mount.dir / "file").st_ino
    same = [path for path in mount.dir.rglob("*") if os.lstat(path).st_ino == inode]
    assert len(same) == 49 and {read_file(path) for path in same} == {b"content"}


def test_many_links(mount):
    """Thousands of names of one inode."""
    write_file(mount.dir / "file", b"x")
    for number in range(1500):
        os.link(mount.dir / "file", mount.dir / f"{number}")
    mount.remount()
    assert os.stat(mount.dir / "file").st_nlink == 1501
    for number in range(1499):
        os.unlink(mount.dir / f"{number}")
    assert os.stat(mount.dir / "1499").st_nlink == 2


def test_link_to_a_link(mount):
    """link(2) on a symbolic link makes a second name of the link; linkat(AT_SYMLINK_FOLLOW) of its target."""
    write_file(mount.dir / "file", b"x")
    os.symlink("file", mount.dir / "link")
    os.link(mount.dir / "link", mount.dir / "second", follow_symlinks=False)
    assert os.readlink(mount.dir / "second") == "file"
    assert os.lstat(mount.dir / "link").st_nlink == 2
    link_followed(mount.dir / "link", mount.dir / "third")
    assert os.path.samestat(os.lstat(mount.dir / "third"), os.stat(mount.dir / "file"))


def test_chain_of_links(mount):
    """40 symbolic links in a row are followed, 41 are ELOOP, through directories too."""
    write_file(mount.dir / "0", b"reached")
    (mount.dir / "d0").mkdir()
    write_file(mount.dir / "d0" / "file", b"inside")
    for number in range(1, 42):
        os.symlink(str(number - 1), mount.dir / str(number))
        os.symlink(f"d{number - 1}", mount.dir / f"d{number}")
    assert read_file(mount.dir / "40") == b"reached"
    assert errno_of(os.stat, mount.dir / "41") == errno.ELOOP
    assert read_file(mount.dir / "d40" / "file") == b"inside"
    assert errno_of(os.stat, mount.dir / "d41" / "file") == errno.ELOOP
    assert os.lstat(mount.dir / "41").st_size == 2


def test_links_out_and_in(mount, plain):
    """Links lead out of the mount, into it, and up from it."""
    write_file(plain / "file", b"outside")
    write_file(mount.dir / "file", b"inside")
    os.symlink(plain / "file", mount.dir / "out")
    os.symlink(mount.dir / "file", plain / "in")
    os.symlink(f"../{plain.name}/in", mount.dir / "there-and-back")
    assert read_file(mount.dir / "out") == b"outside"
    assert read_file(plain / "in") == b"inside"
    assert read_file(mount.dir / "there-and-back") == b"inside"


def test_write_through_a_link(mount):
    """O_CREAT through a link that leads nowhere makes its target."""
    (mount.dir / "d").mkdir()
    os.symlink("d/made", mount.dir / "link")
    write_file(mount.dir / "link", b"through")
    assert read_file(mount.dir / "d" / "made") == b"through"
    assert os.path.islink(mount.dir / "link")
