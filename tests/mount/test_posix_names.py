"""Names and directories as POSIX has them: lookup, rename, listing while entries come and go."""

import ctypes
import errno
import os
import subprocess

from support.files import (RENAME_EXCHANGE, RENAME_NOREPLACE, errno_of, libc, read_file, renameat2,
                           write_file)

# ---- names ----

NAMES = [b"a", b".hidden", b" ", b"\xff\xfe\x80", "ü€😀".encode(), b"new\nline", b"back\\slash", b"x" * 255,
         b"%2F", b"-rf", b"..."]


def test_names(mount):
    """Any bytes but NUL and '/', up to 255 of them, come back as they are."""
    root = os.fsencode(mount.dir)
    for number, name in enumerate(NAMES):
        write_file(root + b"/" + name, b"%d" % number)
    mount.remount()
    assert sorted(os.listdir(root)) == sorted(NAMES)
    for number, name in enumerate(NAMES):
        assert read_file(root + b"/" + name) == b"%d" % number
        os.unlink(root + b"/" + name)
    assert os.listdir(root) == []


def test_names_too_long(mount):
    """ENAMETOOLONG for 256 bytes, in every call that makes a name."""
    name = mount.dir / ("x" * 256)
    write_file(mount.dir / "file", b"")
    for call in ((write_file, name, b""), (os.mkdir, name), (os.symlink, "t", name), (os.stat, name),
                 (os.link, mount.dir / "file", name), (os.rename, mount.dir / "file", name),
                 (os.mkfifo, name)):
        assert errno_of(*call) == errno.ENAMETOOLONG, call


def test_upper_and_lower_case(mount):
    write_file(mount.dir / "name", b"lower")
    write_file(mount.dir / "NAME", b"upper")
    assert read_file(mount.dir / "name") == b"lower"


def test_deep_tree(mount):
    """A path of 200 directories; getcwd and ".." find the way back."""
    deep = mount.dir.joinpath(*["d"] * 200)
    deep.mkdir(parents=True)
    write_file(deep / "file", b"deep")
    mount.remount()
    assert read_file(deep / "file") == b"deep"
    assert os.path.samefile(deep.joinpath(*[".."] * 200), mount.dir)


# ---- rename ----

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


# ---- directories ----

COUNT = 5000


def make_many(directory, count=COUNT):
    directory.mkdir()
    names = [f"entry-{number:05}" for number in range(count)]
    for name in names:
        os.mknod(directory / name)
    return names


def test_readdir_of_many(mount):
    """5,000 entries: each once, inode numbers and types those of stat."""
    directory = mount.dir / "many"
    names = make_many(directory)
    entries = list(os.scandir(directory))
    assert sorted(entry.name for entry in entries) == names
    for entry in entries[::100]:
        assert entry.inode() == os.lstat(entry.path).st_ino
        assert entry.is_file()


def test_readdir_with_deletions_in_between(mount):
    """Entries removed and added while a listing goes on: those that stay are listed, each once."""
    directory = mount.dir / "many"
    names = make_many(directory)
    seen = []
    with os.scandir(directory) as entries:
        for entry in entries:
            seen.append(entry.name)
            number = len(seen)
            if number % 10 == 0:
                os.unlink(directory / seen[number - 5])
                os.mknod(directory / f"new-{number}")
    assert len(seen) == len(set(seen))
    assert set(names) <= set(seen)


def test_rmtree(mount):
    """rm -rf of many entries in several levels leaves nothing, mapped files or not."""
    directory = mount.dir / "many"
    make_many(directory, 1000)
    (directory / "sub").mkdir()
    write_file(directory / "sub" / "file", b"x" * 100_000)
    with open(directory / "sub" / "file", "rb"):
        subprocess.run(["rm", "-rf", directory], check=True)
        assert os.listdir(mount.dir) == []


class Dirent(ctypes.Structure):
    _fields_ = [("ino", ctypes.c_uint64), ("off", ctypes.c_int64), ("reclen", ctypes.c_ushort),
                ("type", ctypes.c_ubyte), ("name", ctypes.c_char * 256)]


def test_telldir_and_seekdir(mount):
    """seekdir to what telldir said goes on at that entry, after deletions too; rewinddir begins again."""
    names = make_many(mount.dir / "many", 500)
    libc.opendir.restype = ctypes.c_void_p
    libc.readdir.restype = ctypes.POINTER(Dirent)
    libc.telldir.restype = ctypes.c_long
    libc.readdir.argtypes = libc.telldir.argtypes = libc.rewinddir.argtypes = [ctypes.c_void_p]
    libc.closedir.argtypes = [ctypes.c_void_p]
    libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
    stream = libc.opendir(os.fsencode(mount.dir / "many"))

    def walk():
        places = []
        while True:
            place = libc.telldir(stream)
            found = libc.readdir(stream)
            if not found:
                return places
            places.append((place, found.contents.name))

    places = walk()
    assert {name for _, name in places} == {os.fsencode(name) for name in names} | {b".", b".."}
    for place, name in places[::37]:
        libc.seekdir(stream, place)
        assert libc.readdir(stream).contents.name == name
    os.unlink(os.path.join(mount.dir, "many", os.fsdecode(places[250][1])))
    libc.seekdir(stream, places[250][0])
    assert [name for _, name in walk()] == [name for _, name in places[251:]]
    libc.rewinddir(stream)
    assert len(walk()) == len(places) - 1
    libc.closedir(stream)


def test_dot_and_dot_dot(mount):
    """"." and ".." have the right inode numbers, the names that getdents gives included."""
    (mount.dir / "a" / "b").mkdir(parents=True)
    done = subprocess.run(["ls", "-ai1", mount.dir / "a" / "b"], capture_output=True, text=True, check=True)
    numbers = {line.split()[1]: int(line.split()[0]) for line in done.stdout.splitlines()}
    assert numbers == {".": os.stat(mount.dir / "a" / "b").st_ino, "..": os.stat(mount.dir / "a").st_ino}


def test_directory_errors(mount):
    root = mount.dir
    (root / "full").mkdir()
    write_file(root / "full" / "x", b"")
    assert errno_of(os.rmdir, root / "full") == errno.ENOTEMPTY
    assert errno_of(os.rmdir, root / "full" / "x") == errno.ENOTDIR
    assert errno_of(os.unlink, root / "full") in (errno.EISDIR, errno.EPERM)
    assert errno_of(os.mkdir, root / "full") == errno.EEXIST
    assert errno_of(os.listdir, root / "full" / "x") == errno.ENOTDIR
    assert errno_of(os.open, root / "full", os.O_WRONLY) == errno.EISDIR


def test_open_directory_removed(mount):
    """A removed directory that is open is empty, and nothing can be made in it."""
    (mount.dir / "d").mkdir()
    fd = os.open(mount.dir / "d", os.O_RDONLY | os.O_DIRECTORY)
    os.rmdir(mount.dir / "d")
    assert os.listdir(fd) == []
    assert errno_of(os.open, "x", os.O_CREAT | os.O_WRONLY, dir_fd=fd) == errno.ENOENT
    os.close(fd)
