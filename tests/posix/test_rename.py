"""rename(2) and renameat2(2)."""

import errno
import itertools
import os
import stat

from support.files import (RENAME_EXCHANGE, RENAME_NOREPLACE, at_once, errno_of, read_file, renameat2, write_file)


def test_rename_over(mount):
    """Over a file: the new content; the old inode lives on in who has it open."""
    source, target = mount.dir / "source", mount.dir / "target"
    write_file(source, b"new")
    write_file(target, b"old")
    with open(target, "rb") as f:
        os.rename(source, target)
        assert f.read() == b"old"
        assert os.fstat(f.fileno()).st_nlink == 0
    assert os.listdir(mount.dir) == ["target"]
    assert read_file(target) == b"new"


def test_rename_errors(mount):
    """The errors of rename(2), and nothing changes by them."""
    root = mount.dir
    write_file(root / "file", b"f")
    (root / "empty").mkdir()
    (root / "full").mkdir()
    write_file(root / "full" / "x", b"x")
    cases = [("file", "empty", errno.EISDIR), ("empty", "file", errno.ENOTDIR), ("empty", "full", errno.ENOTEMPTY),
             ("none", "x", errno.ENOENT), ("full", "full/sub", errno.EINVAL), ("file", "none/x", errno.ENOENT)]
    for source, target, code in cases:
        assert errno_of(os.rename, root / source, root / target) == code, (source, target)
    assert sorted(os.listdir(root)) == ["empty", "file", "full"]
    os.rename(root / "full", root / "empty")
    assert read_file(root / "empty" / "x") == b"x"


def test_rename_noreplace(mount):
    source, target = mount.dir / "source", mount.dir / "target"
    write_file(source, b"s")
    write_file(target, b"t")
    assert errno_of(renameat2, source, target, RENAME_NOREPLACE) == errno.EEXIST
    assert read_file(target) == b"t"
    os.unlink(target)
    renameat2(source, target, RENAME_NOREPLACE)
    assert read_file(target) == b"s"


def test_rename_exchange(mount):
    """Files, directories, and one with the other; both must be there."""
    one, two = mount.dir / "one", mount.dir / "d" / "two"
    two.mkdir(parents=True)
    write_file(two / "inside", b"x")
    write_file(one, b"1")
    inodes = os.stat(one).st_ino, os.stat(two).st_ino
    renameat2(one, two, RENAME_EXCHANGE)
    assert (os.stat(two).st_ino, os.stat(one).st_ino) == inodes
    assert read_file(two) == b"1" and read_file(one / "inside") == b"x"
    assert os.path.samefile(one / "..", mount.dir)
    assert errno_of(renameat2, one, mount.dir / "none", RENAME_EXCHANGE) == errno.ENOENT
    mount.remount()
    assert read_file(two) == b"1" and read_file(one / "inside") == b"x"


def test_rename_of_links_of_one_inode(mount):
    """rename(2) between two names of one inode does nothing."""
    write_file(mount.dir / "a", b"x")
    os.link(mount.dir / "a", mount.dir / "b")
    os.rename(mount.dir / "a", mount.dir / "b")
    assert sorted(os.listdir(mount.dir)) == ["a", "b"]


def test_over_an_empty_directory(mount):
    """A directory over an empty one; who has the old one open finds it empty and without a name."""
    (mount.dir / "old").mkdir()
    (mount.dir / "new").mkdir()
    write_file(mount.dir / "new/file", b"x")
    fd = os.open(mount.dir / "old", os.O_RDONLY)
    os.rename(mount.dir / "new", mount.dir / "old")
    assert os.listdir(fd) == [] and os.fstat(fd).st_nlink == 0
    os.close(fd)
    assert os.listdir(mount.dir) == ["old"]
    mount.remount()
    assert read_file(mount.dir / "old/file") == b"x"


def test_tree_moved(mount):
    """A tree moves with all that is in it, open files and working directories included; ".." follows."""
    tree = mount.dir / "a/tree"
    (tree / "x/y").mkdir(parents=True)
    (mount.dir / "b").mkdir()
    write_file(tree / "x/y/file", b"before")
    with open(tree / "x/y/file", "r+b", buffering=0) as f:
        fd = os.open(tree / "x/y", os.O_RDONLY)
        os.rename(tree, mount.dir / "b/moved")
        f.write(b"after!")
        assert os.path.samestat(os.stat("../../..", dir_fd=fd), os.stat(mount.dir / "b"))
        os.close(fd)
    mount.remount()
    assert read_file(mount.dir / "b/moved/x/y/file") == b"after!"
    assert os.path.samefile(mount.dir / "b/moved/..", mount.dir / "b")
    assert os.stat(mount.dir / "a").st_nlink == 2 and os.stat(mount.dir / "b").st_nlink == 3


def test_replaced_again_and_again(mount):
    """Readers of a name that is replaced all the time find one of its contents whole, and never no file."""
    path = mount.dir / "name"
    contents = [bytes([number]) * (50_000 + number) for number in range(10)]
    write_file(path, contents[0])
    stop = mount.dir / "stop"

    def act(number):
        if number == 0:
            for count in range(200):
                temporary = mount.dir / "name.tmp"
                write_file(temporary, contents[count % 10])
                os.rename(temporary, path)
            write_file(stop, b"")
            return 0
        read = 0
        while not stop.exists():
            data = read_file(path)
            assert data == contents[data[0]]
            read += 1
        return read

    assert min(at_once(3, act)[1:]) > 0
    assert read_file(path) == contents[9]


def test_exchanged_again_and_again(mount):
    """Of two names that are exchanged all the time both are always there, and once each."""
    for name in ("one", "two"):
        write_file(mount.dir / name, name.encode())
    stop = mount.dir / "stop"

    def act(number):
        if number == 0:
            for _ in range(300):
                renameat2(mount.dir / "one", mount.dir / "two", RENAME_EXCHANGE)
            write_file(stop, b"")
        while not stop.exists():
            assert read_file(mount.dir / "one") in (b"one", b"two")
            assert {"one", "two"} <= set(os.listdir(mount.dir))
        return True

    at_once(3, act)
    assert {read_file(mount.dir / "one"), read_file(mount.dir / "two")} == {b"one", b"two"}


def test_directories_into_each_other(mount):
    """Two directories that are moved into each other at once: one of them wins, and no tree is cut off."""
    for number in range(30):
        for name in "ab":
            (mount.dir / f"{number}/{name}").mkdir(parents=True)

    def act(which):
        codes = []
        for number in range(30):
            one, other = ("a", "b") if which else ("b", "a")
            codes.append(errno_of(os.rename, mount.dir / f"{number}/{one}", mount.dir / f"{number}/{other}/in"))
        return codes

    for pair in zip(*at_once(2, act), strict=True):
        assert sorted(pair) in ([0, errno.ENOENT], [0, errno.EINVAL])
    assert sum(1 for path in mount.dir.rglob("*") if path.is_dir()) == 90


def test_rename_to_every_kind(mount, plain):
    """Every kind of inode over every other kind, and over nothing: as on the disk."""
    kinds = {"file": lambda path: write_file(path, b"f"), "empty": os.mkdir, "link": lambda path: os.symlink("x", path),
             "full": lambda path: os.makedirs(path / "inside"), "fifo": os.mkfifo, "none": lambda path: None}

    def act(root):
        found = {}
        for flags in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            for source, target in itertools.product(kinds, kinds):
                place = root / f"{flags}-{source}-{target}"
                place.mkdir()
                kinds[source](place / "source")
                kinds[target](place / "target")
                code = errno_of(renameat2, place / "source", place / "target", flags)
                found[place.name] = code, sorted((entry.name, stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode))
                                                 for entry in os.scandir(place))
        return found

    assert act(mount.dir) == act(plain)
