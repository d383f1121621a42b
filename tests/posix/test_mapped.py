"""MAP_SHARED and MAP_PRIVATE: what a mapping shows and stores, and what read and write see of it."""

import ctypes
import faulthandler
import mmap
import os
import resource
import signal
import struct
import subprocess

import pytest

from support.files import at_once, in_child, libc, random_bytes, read_file, sha256, write_file
from support.mounts import SETTLES


SIZE = 300_000


@pytest.fixture
def path(mount):
    """A file of random bytes."""
    path = mount.dir / "file"
    write_file(path, random_bytes(1, SIZE))
    return path


def shared(fd, size=SIZE):
    return mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)


def test_seen_by_read_and_write(mount, path):
    """What is stored through a shared mapping is read at once, what is written is in the mapping at once."""
    expected = bytearray(random_bytes(1, SIZE))
    with open(path, "r+b", buffering=0) as f, shared(f.fileno()) as m:
        for number in range(200):
            at = number * 1499 % (SIZE - 10)
            if number % 2:
                m[at:at + 4] = b"%04d" % number
            else:
                os.pwrite(f.fileno(), b"%04d" % number, at)
            expected[at:at + 4] = b"%04d" % number
            assert os.pread(f.fileno(), 8, at) == m[at:at + 8] == expected[at:at + 8]
    for how in SETTLES:
        mount.settle(how)
        assert read_file(path) == expected, how


def test_seen_by_other_processes(mount, path):
    """Two processes, one with a mapping and one with read and write, see each other's bytes."""
    with open(path, "r+b", buffering=0) as f, shared(f.fileno()) as m:
        def act():
            with open(path, "r+b", buffering=0) as g, shared(g.fileno()) as n:
                before = (os.pread(g.fileno(), 5, 100), n[100:105])
                os.pwrite(g.fileno(), b"wrote", 200)
                n[5000:5006] = b"mapped"
                return before

        m[100:105] = b"first"
        assert in_child(act) == (b"first", b"first")
        assert m[200:205] == b"wrote" and m[5000:5006] == b"mapped"
        assert os.pread(f.fileno(), 6, 5000) == b"mapped"


def test_counter_of_several_processes(mount):
    """Stores of several processes to one mapped page: none is lost."""
    path = mount.dir / "counters"
    write_file(path, bytes(4096))

    def act(number):
        with open(path, "r+b") as f, shared(f.fileno(), 4096) as m:
            for count in range(2000):
                struct.pack_into("q", m, number * 8, count + 1)

    at_once(4, act)
    assert struct.unpack_from("4q", read_file(path)) == (2000,) * 4
    mount.remount()
    assert struct.unpack_from("4q", read_file(path)) == (2000,) * 4


def test_private(mount, path):
    """A private mapping changes nobody's file."""
    with open(path, "r+b") as f:
        with mmap.mmap(f.fileno(), SIZE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as m:
            m[:] = bytes(SIZE)
            assert os.pread(f.fileno(), SIZE, 0) == random_bytes(1, SIZE)
    mount.remount()
    assert read_file(path) == random_bytes(1, SIZE)


def test_private_of_a_sealed_file(mount, path):
    """Loaders map sealed files privately and write to their copy."""
    mount.wait_sealed()
    with open(path, "rb") as f:
        with mmap.mmap(f.fileno(), SIZE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as m:
            m[1000:2000] = bytes(1000)
            assert m[:1000] == random_bytes(1, SIZE)[:1000]
            assert read_file(path) == random_bytes(1, SIZE)


def signal_of(function):
    """The signal that ends a child that calls `function`; None if it returns."""
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        function()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else None


@pytest.mark.parametrize("sealed", [False, True])
def test_past_the_end(mount, path, sealed):
    """Bytes after the end in the last page are zero; a page past the end is SIGBUS, as is one that was cut off."""
    if sealed:
        mount.wait_sealed()
    pages = -(-SIZE // mmap.PAGESIZE) * mmap.PAGESIZE
    fd = os.open(path, os.O_RDWR)
    address = map_pages(fd, pages + mmap.PAGESIZE)
    view = (ctypes.c_ubyte * (pages + mmap.PAGESIZE)).from_address(address)
    assert bytes(view[SIZE:pages]) == bytes(pages - SIZE)
    assert signal_of(lambda: view[SIZE]) is None
    assert signal_of(lambda: view[pages]) == signal.SIGBUS
    os.ftruncate(fd, 5000)
    assert view[0] == random_bytes(1, SIZE)[0]
    assert signal_of(lambda: view[100_000]) == signal.SIGBUS
    os.ftruncate(fd, SIZE)
    assert view[100_000] == 0 and view[4999] == random_bytes(1, SIZE)[4999]
    libc.munmap(ctypes.c_void_p(address), pages + mmap.PAGESIZE)
    os.close(fd)


def map_pages(fd, size, access=mmap.PROT_READ | mmap.PROT_WRITE):
    """mmap(2) as it is: Python's checks the file's size, and keeps a descriptor. The address."""
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    address = libc.mmap(None, size, access, mmap.MAP_SHARED, fd, 0)
    assert address != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
    return address


def test_bytes_past_the_end_are_not_kept(mount):
    """What a mapping stores after the end of the file, in its last page, is not in the file when it grows."""
    path = mount.dir / "file"
    write_file(path, b"x" * 5000)
    with open(path, "r+b") as f:
        address = map_pages(f.fileno(), 2 * mmap.PAGESIZE)
        view = (ctypes.c_ubyte * (2 * mmap.PAGESIZE)).from_address(address)
        view[5000] = 7
        libc.msync(ctypes.c_void_p(address), 2 * mmap.PAGESIZE, 4)
        libc.munmap(ctypes.c_void_p(address), 2 * mmap.PAGESIZE)
        os.ftruncate(f.fileno(), 6000)
    mount.remount()
    assert read_file(path) == b"x" * 5000 + bytes(1000)


def test_mapping_outlives_everything(mount, path):
    """A mapping stays when its descriptor is closed and its file renamed, replaced and removed."""
    with open(path, "r+b") as f:
        m = shared(f.fileno())
    os.rename(path, mount.dir / "moved")
    write_file(path, b"another")
    os.rename(path, mount.dir / "moved")
    m[:4] = b"kept"
    assert m[:4] == b"kept" and m[4:] == random_bytes(1, SIZE)[4:]
    assert read_file(mount.dir / "moved") == b"another"
    m.close()
    assert mount.wait_sealed()["files"] == 1


def test_msync_and_fsync(mount, path):
    """msync(2) and fsync(2) of mapped bytes work, and what was stored is there when the driver is killed after."""
    with open(path, "r+b") as f, shared(f.fileno()) as m:
        m[10_000:10_005] = b"synch"
        m.flush()
        m[20_000:20_005] = b"ronic"
        os.fsync(f.fileno())
    mount.kill()
    mount.mount()
    data = read_file(path)
    assert data[10_000:10_005] == b"synch" and data[20_000:20_005] == b"ronic"


def test_grown_under_a_mapping(mount, path):
    """Pages that a file grows by appear in a mapping that was made for them."""
    fd = os.open(path, os.O_RDWR)
    pages = 1 << 20
    address = map_pages(fd, pages)
    view = (ctypes.c_ubyte * pages).from_address(address)
    assert view[SIZE - 1] == random_bytes(1, SIZE)[-1]
    os.pwrite(fd, b"grown", 500_000)
    assert bytes(view[499_999:500_005]) == b"\0grown"
    view[400_000] = 9
    assert os.pread(fd, 1, 400_000) == b"\x09"
    libc.munmap(ctypes.c_void_p(address), pages)
    os.close(fd)


@pytest.mark.parametrize("how", SETTLES)
def test_mapped_by_readers_and_written(mount, path, how):
    """A file that one process has mapped is written by another, in each state: the mapping follows."""
    mount.settle(how)
    with open(path, "rb") as f, mmap.mmap(f.fileno(), SIZE, prot=mmap.PROT_READ) as m:
        assert m[:SIZE] == random_bytes(1, SIZE)

        def act():
            with open(path, "r+b") as g:
                g.seek(123_456)
                g.write(b"changed")

        in_child(act)
        assert m[123_456:123_463] == b"changed"
        assert m[:123_456] == random_bytes(1, SIZE)[:123_456]


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "copied-before"])
@pytest.mark.parametrize("kept", [False, True], ids=["closed", "open"])
@pytest.mark.parametrize("how", SETTLES)
def test_rewritten_under_a_mapping(mount, path, how, kept, shared):
    """A file that is mapped, its descriptor closed or not, is opened with O_TRUNC and written: the mapping follows, a
    copy that was made before does not."""
    if shared:
        subprocess.run(["cp", path, mount.dir / "copy"], check=True)
    mount.settle(how)
    fd = os.open(path, os.O_RDONLY)
    address = map_pages(fd, SIZE, mmap.PROT_READ)
    mapping = (ctypes.c_char * SIZE).from_address(address)
    if not kept:
        os.close(fd)
    assert mapping.raw == random_bytes(1, SIZE)
    for number in (2, 3):
        write_file(path, random_bytes(number, SIZE))
        assert mapping.raw == read_file(path) == random_bytes(number, SIZE)
    mount.wait_sealed()
    assert mapping.raw == read_file(path) == random_bytes(3, SIZE)
    libc.munmap(ctypes.c_void_p(address), SIZE)
    if kept:
        os.close(fd)
    if shared:
        assert read_file(mount.dir / "copy") == random_bytes(1, SIZE)


def test_copied_through_mappings(mount, plain):
    """A mapped file is written to another, whose pages come from the same file system, and to itself."""
    def act(root):
        path = root / "file"
        write_file(path, random_bytes(1, SIZE))
        with open(path, "r+b", buffering=0) as f, shared(f.fileno()) as m:
            with open(root / "copy", "wb", buffering=0) as g:
                g.write(m)
            os.pwrite(f.fileno(), memoryview(m)[:100_000], 150_000)
            os.preadv(f.fileno(), [memoryview(m)[4096:8192]], 200_000)
        return sha256(path), sha256(root / "copy")

    assert act(mount.dir) == act(plain)
