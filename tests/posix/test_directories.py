"""Directories: listing while entries come and go, telldir, removal."""

import ctypes
import errno
import os
import stat
import struct
import subprocess
import time

import pytest

from support.files import at_once, errno_of, in_child, libc, write_file
from support.mounts import SETTLES


COUNT = 2000


def make_many(directory, count=COUNT):
    directory.mkdir()
    names = [f"entry-{number:05}" for number in range(count)]
    for name in names:
        os.mknod(directory / name)
    return names


def test_readdir_of_many(mount):
    """Thousands of entries: each once, inode numbers and types those of stat."""
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


@pytest.mark.parametrize("steps", [1, 100])
def test_readdir_while_others_change_it(mount, steps):
    """Other processes make, remove and rename entries all the time: what stays is listed once in every listing."""
    directory = mount.dir / "many"
    names = set(make_many(directory, 500))
    stop = mount.dir / "stop"

    def act(number):
        if number == 0:
            for _ in range(20):
                seen = []
                with os.scandir(directory) as entries:
                    for count, entry in enumerate(entries):
                        seen.append(entry.name)
                        if count % steps == 0:
                            time.sleep(0)
                stays = [name for name in seen if name.startswith("entry-")]
                assert len(stays) == len(set(stays)) and set(stays) == names
            write_file(stop, b"")
        count = 0
        while not stop.exists():
            count += 1
            os.mknod(directory / f"{number}-{count}")
            if count % 2:
                os.rename(directory / f"{number}-{count}", directory / f"{number}-{count}-moved")
            else:
                os.unlink(directory / f"{number}-{count - 1}-moved")
                os.unlink(directory / f"{number}-{count}")
        return True

    at_once(3, act)


def test_listing_and_removing(mount):
    """The loop of rm -r: list some, remove them, list on, until nothing is left."""
    directory = mount.dir / "many"
    make_many(directory, 1000)
    with os.scandir(directory) as entries:
        for entry in entries:
            os.unlink(entry.path)
    assert os.listdir(directory) == []
    directory.rmdir()


def test_seen_at_once(mount):
    """A name is in the listing as soon as it is made, and gone as soon as it is removed; so for a second process."""
    directory = mount.dir / "d"
    directory.mkdir()
    fd = os.open(directory, os.O_RDONLY)
    for number in range(50):
        write_file(directory / str(number), b"x")
        assert str(number) in os.listdir(fd)
        assert in_child(os.listdir, directory) == os.listdir(directory)
        if number % 2:
            os.unlink(directory / str(number))
            assert str(number) not in os.listdir(fd)
    os.close(fd)


def test_types_of_entries(mount):
    """d_type and d_ino of every kind of inode are those of lstat(2), after a remount, too."""
    directory = mount.dir / "d"
    directory.mkdir()
    write_file(directory / "file", b"x")
    (directory / "sub").mkdir()
    os.symlink("file", directory / "link")
    os.mkfifo(directory / "fifo")
    os.link(directory / "file", directory / "second")
    for how in SETTLES:
        mount.settle(how)
        for entry in os.scandir(directory):
            info = os.lstat(entry.path)
            assert entry.inode() == info.st_ino
            assert (entry.is_file(follow_symlinks=False), entry.is_dir(follow_symlinks=False), entry.is_symlink()) == (
                stat.S_ISREG(info.st_mode), stat.S_ISDIR(info.st_mode), stat.S_ISLNK(info.st_mode)), entry.name


def test_listing_in_small_pieces(mount):
    """getdents64(2) with a buffer that holds few entries, or not one: all are found, or EINVAL."""
    directory = mount.dir / "many"
    names = make_many(directory, 300)
    write_file(directory / ("long" * 60), b"")
    fd = os.open(directory, os.O_RDONLY)
    for size in (300, 512, 4096):
        os.lseek(fd, 0, os.SEEK_SET)
        assert sorted(entries_by(fd, size)) == sorted([".", "..", *names, "long" * 60])
    os.lseek(fd, 0, os.SEEK_SET)
    assert libc.syscall(GETDENTS64, fd, ctypes.create_string_buffer(10), 10) == -1
    assert ctypes.get_errno() == errno.EINVAL
    os.close(fd)


GETDENTS64 = {"x86_64": 217}.get(os.uname().machine, 61)


def entries_by(fd, size):
    buffer, found = ctypes.create_string_buffer(size), []
    while (got := libc.syscall(GETDENTS64, fd, buffer, size)) > 0:
        at = 0
        while at < got:
            length = struct.unpack_from("H", buffer, at + 16)[0]
            found.append(buffer.raw[at + 19:at + length].split(b"\0")[0].decode())
            at += length
    assert got == 0, ctypes.get_errno()
    return found


def test_removed_from_under(mount):
    """A working directory that is removed: getcwd fails, "." is there, "..", too; nothing can be made."""
    directory = mount.dir / "d"
    directory.mkdir()

    def act():
        os.chdir(directory)
        os.rmdir(directory)
        return [errno_of(os.getcwd), os.listdir("."), errno_of(os.mkdir, "x"), errno_of(os.stat, "."),
                errno_of(os.rmdir, directory)]

    assert in_child(act) == [errno.ENOENT, [], errno.ENOENT, 0, errno.ENOENT]


MILLION = 1_000_000


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_a_million_entries(mount):
    """1,000,000 entries in one directory: made, listed once each, found, after a remount, too, and removed."""
    directory = mount.dir / "many"
    directory.mkdir()
    workers = 4

    def make(number):
        for count in range(number, MILLION, workers):
            os.mknod(directory / f"{count:07}")

    at_once(workers, make)
    for how in ("dirty", "remounted"):
        mount.settle(how)
        numbers = bytearray(MILLION)
        with os.scandir(directory) as entries:
            for entry in entries:
                numbers[int(entry.name)] += 1
        assert numbers.count(1) == MILLION
        for count in range(0, MILLION, 9973):
            assert stat.S_ISREG(os.stat(directory / f"{count:07}").st_mode)
        assert errno_of(os.stat, directory / f"{MILLION:07}") == errno.ENOENT
    for count in range(0, MILLION, 2):
        os.unlink(directory / f"{count:07}")
    assert sum(1 for _ in os.scandir(directory)) == MILLION // 2
    subprocess.run(["rm", "-r", directory], check=True)
    assert os.listdir(mount.dir) == []
