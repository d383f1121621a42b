"""flock and POSIX locks between processes."""

import errno
import fcntl
import os
import struct
import subprocess
import sys
import time

import pytest

from support.files import Child, errno_of, in_child, write_file



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


def locked(path, kind, begin=0, length=0, how=fcntl.LOCK_EX):
    """In a process of its own: the errno of taking a lock without waiting."""
    def act():
        fd = os.open(path, os.O_RDWR)
        if kind == "flock":
            return errno_of(fcntl.flock, fd, how | fcntl.LOCK_NB)
        return errno_of(fcntl.lockf, fd, how | fcntl.LOCK_NB, length, begin)

    return in_child(act)


def test_ranges(mount):
    """POSIX locks of ranges: those that overlap keep each other out, others do not; they split and join."""
    path = mount.dir / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.lockf(fd, fcntl.LOCK_EX, 100, 100)
    assert locked(path, "lockf", 0, 100) == 0
    assert locked(path, "lockf", 199, 1) == errno.EAGAIN
    assert locked(path, "lockf", 200) == 0
    assert locked(path, "lockf", 50) == errno.EAGAIN
    fcntl.lockf(fd, fcntl.LOCK_UN, 10, 140)
    assert locked(path, "lockf", 140, 10) == 0
    assert locked(path, "lockf", 139, 2) == errno.EAGAIN
    assert locked(path, "lockf", 149, 2) == errno.EAGAIN
    far = (1 << 62)
    fcntl.lockf(fd, fcntl.LOCK_EX, 1, far)
    assert locked(path, "lockf", far, 1) == errno.EAGAIN
    os.close(fd)
    assert locked(path, "lockf") == 0


@pytest.mark.parametrize("kind", ["flock", "lockf"])
def test_shared_and_exclusive(mount, kind):
    """Readers share; a writer waits for all of them; an upgrade and a downgrade are seen."""
    path = mount.dir / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    take = getattr(fcntl, kind)
    take(fd, fcntl.LOCK_SH)
    assert locked(path, kind, how=fcntl.LOCK_SH) == 0
    assert locked(path, kind) == errno.EAGAIN
    take(fd, fcntl.LOCK_EX)
    assert locked(path, kind, how=fcntl.LOCK_SH) == errno.EAGAIN
    take(fd, fcntl.LOCK_SH)
    assert locked(path, kind, how=fcntl.LOCK_SH) == 0
    os.close(fd)


@pytest.mark.parametrize("kind", ["flock", "lockf"])
def test_waiting(mount, kind):
    """A process that waits for a lock gets it when it is given back, also by the end of its holder."""
    path = mount.dir / "file"
    write_file(path, b"")
    for holder_dies in (False, True):
        ready, go = os.pipe(), os.pipe()

        def hold(ready=ready, go=go):
            fd = os.open(path, os.O_RDWR)
            getattr(fcntl, kind)(fd, fcntl.LOCK_EX)
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            if not holder_dies:
                getattr(fcntl, kind)(fd, fcntl.LOCK_UN)

        def wait():
            fd = os.open(path, os.O_RDWR)
            getattr(fcntl, kind)(fd, fcntl.LOCK_EX)
            return True

        holder = Child(hold)
        os.read(ready[0], 1)
        waiter = Child(wait)
        time.sleep(0.1)
        os.write(go[1], b"x")
        holder.value()
        assert waiter.value()
        for end in (*ready, *go):
            os.close(end)


def test_deadlock(mount):
    """EDEADLK where two processes would wait for each other's POSIX locks."""
    path = mount.dir / "file"
    write_file(path, b"")
    ready = os.pipe()

    def other():
        fd = os.open(path, os.O_RDWR)
        fcntl.lockf(fd, fcntl.LOCK_EX, 1, 1)
        os.write(ready[1], b"x")
        code = errno_of(fcntl.lockf, fd, fcntl.LOCK_EX, 1, 0)
        os.close(fd)
        return code

    fd = os.open(path, os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX, 1, 0)
    child = Child(other)
    os.read(ready[0], 1)
    codes = {errno_of(fcntl.lockf, fd, fcntl.LOCK_EX, 1, 1)}
    os.close(fd)
    codes.add(child.value())
    assert codes == {0, errno.EDEADLK}
    os.close(ready[0])
    os.close(ready[1])


def test_who_holds_it(mount):
    """F_GETLK names the process and the range of a lock."""
    path = mount.dir / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.lockf(fd, fcntl.LOCK_EX, 10, 5)
    layout = "hhqqi4x"  # struct flock

    def ask():
        there = os.open(path, os.O_RDWR)
        asked = struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        return struct.unpack(layout, fcntl.fcntl(there, fcntl.F_GETLK, asked))

    assert in_child(ask) == (fcntl.F_WRLCK, os.SEEK_SET, 5, 10, os.getpid())
    os.close(fd)


def test_open_file_description_locks(mount):
    """OFD locks are the descriptor's: kept when another one of the process is closed, unlike POSIX locks."""
    path = mount.dir / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    whole = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, whole)
    second = os.open(path, os.O_RDWR)
    assert errno_of(fcntl.fcntl, second, fcntl.F_OFD_SETLK, whole) == errno.EAGAIN
    os.close(second)
    assert locked(path, "lockf") == errno.EAGAIN
    os.close(fd)
    fd = os.open(path, os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX)
    os.close(os.open(path, os.O_RDONLY))
    assert locked(path, "lockf") == 0
    os.close(fd)


@pytest.mark.parametrize("kind", ["flock", "lockf"])
def test_kept_by_an_inode(mount, kind):
    """A lock is the inode's: kept through sealing, rename and unlink, and found by another name."""
    path = mount.dir / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(fd, b"x" * 100_000)
    getattr(fcntl, kind)(fd, fcntl.LOCK_EX)
    os.link(path, mount.dir / "second")
    os.rename(path, mount.dir / "moved")
    if kind == "flock":  # POSIX locks go with any close of the file by this process
        write_file(mount.dir / "moved", b"y" * 50_000)
    assert locked(mount.dir / "second", kind) == errno.EAGAIN
    write_file(mount.dir / "new", b"")
    os.rename(mount.dir / "new", mount.dir / "moved")
    assert locked(mount.dir / "moved", kind) == 0
    assert locked(mount.dir / "second", kind) == errno.EAGAIN
    os.close(fd)
    assert locked(mount.dir / "second", kind) == 0
