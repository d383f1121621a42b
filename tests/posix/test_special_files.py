"""FIFOs, sockets, devices, and what else mknod makes."""

import errno
import os
import socket
import stat

import pytest

from support.files import Child, errno_of, in_directory, random_bytes, read_file, write_file


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


def test_fifo_between_processes(mount):
    """A fifo carries bytes from one process to another, and tells of the end."""
    fifo = mount.dir / "fifo"
    os.mkfifo(fifo)
    data = random_bytes(1, 300_000)

    def write():
        write_file(fifo, data)

    writer = Child(write)
    assert read_file(fifo) == data
    writer.value()
    assert os.stat(fifo).st_size == 0


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET],
                         ids=["stream", "datagram", "packets"])
def test_socket_between_processes(mount, kind):
    """A socket on the mount is bound, connected to, and bound again only when its name is gone."""
    with socket.socket(socket.AF_UNIX, kind) as server:
        in_directory(mount.dir, server.bind, "socket")
        if kind != socket.SOCK_DGRAM:
            server.listen()

        def send():
            with socket.socket(socket.AF_UNIX, kind) as client:
                in_directory(mount.dir, client.connect, "socket")
                client.send(b"through")

        client = Child(send)
        if kind == socket.SOCK_DGRAM:
            received = server.recv(100)
        else:
            connection, _ = server.accept()
            with connection:
                received = connection.recv(100)
        client.value()
        assert received == b"through"
        with socket.socket(socket.AF_UNIX, kind) as second:
            assert in_directory(mount.dir, errno_of, second.bind, "socket") == errno.EADDRINUSE
            os.unlink(mount.dir / "socket")
            in_directory(mount.dir, second.bind, "socket")


def test_attributes_of_special_files(mount):
    """Modes, owners, times, links and renames are those of any inode."""
    os.mkfifo(mount.dir / "fifo", 0o640)
    in_directory(mount.dir, lambda: socket.socket(socket.AF_UNIX).bind("socket"))
    for name in ("fifo", "socket"):
        os.chmod(mount.dir / name, 0o604)
        os.utime(mount.dir / name, ns=(5, 6))
        os.link(mount.dir / name, mount.dir / f"{name}-2")
        os.rename(mount.dir / name, mount.dir / f"{name}-moved")
    mount.remount()
    for name in ("fifo", "socket"):
        info = os.stat(mount.dir / f"{name}-moved")
        assert (stat.S_IMODE(info.st_mode), info.st_nlink, info.st_mtime_ns) == (0o604, 2, 6)
        assert info.st_ino == os.stat(mount.dir / f"{name}-2").st_ino


@pytest.mark.root_only
def test_devices_are_not_opened(unmounted):
    """Without -o dev a device does not open; with it, it does."""
    for options, code in (((), errno.EACCES), (("dev",), 0)):
        unmounted.mount(*options)
        path = unmounted.dir / "null"
        if not path.exists():
            os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        assert errno_of(write_file, path, b"x") == code
        unmounted.umount()


def test_devices_are_for_root(mount):
    """Who may not make a device gets EPERM, and no entry."""
    if os.geteuid() == 0:
        expected = 0
    else:
        expected = errno.EPERM
    assert errno_of(os.mknod, mount.dir / "null", 0o600 | stat.S_IFCHR, os.makedev(1, 3)) == expected
    assert (mount.dir / "null").exists() == (expected == 0)
    assert errno_of(os.mknod, mount.dir / "directory", 0o700 | stat.S_IFDIR) in (errno.EPERM, errno.EINVAL)
    assert errno_of(os.mknod, mount.dir / "link", 0o700 | stat.S_IFLNK) == errno.EINVAL
