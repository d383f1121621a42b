"""Programs on data files: what the kernel's passthrough makes possible, and where it must not be trusted.

As root passthrough is on; as an ordinary user the same must hold without it.
"""

import ctypes
import errno
import mmap
import os
import subprocess
import time

import pytest

from support.files import MIB, errno_of, libc, random_bytes, read_file, write_file
from support.mounts import wait_for

SIZE = 2 * MIB


def sealed_file(mount, name, content):
    write_file(mount.dir / name, content)
    mount.wait_sealed()
    return mount.dir / name


@pytest.mark.root_only
def test_status(mount, weightfs):
    """status and -v say that it is on, and if it is not, why."""
    assert mount.status()["passthrough"] == "on"
    assert "passthrough is on" in mount.run("status", mount.dir).stdout
    mount.umount()
    mount.mount("passthrough=off")
    assert "passthrough=off" in mount.status()["passthrough"]
    assert "passthrough is off" in mount.run("status", mount.dir).stdout
    mount.umount()
    assert mount.status()["passthrough"] is None


def test_demanded(unmounted):
    """-o passthrough=on: it is on, or there is no mount and a reason."""
    done = unmounted.run("mount", unmounted.store, unmounted.dir, "-o", "passthrough=on", check=False)
    if os.geteuid() == 0:
        assert done.returncode == 0
        unmounted.run("umount", unmounted.dir)
    else:
        assert done.returncode == 1
        assert "CAP_SYS_ADMIN" in done.stderr
    assert not unmounted.mounted
    assert unmounted.run("mount", unmounted.store, unmounted.dir, "-o", "passthrough=maybe",
                         check=False).returncode == 2


def map_shared(path, size, *, writable):
    """The address of a mapping that keeps no descriptor, as Python's own do."""
    fd = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
    libc.mmap.restype = ctypes.c_void_p
    prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    at = libc.mmap(None, ctypes.c_size_t(size), prot, mmap.MAP_SHARED, fd, ctypes.c_long(0))
    os.close(fd)
    assert at != ctypes.c_void_p(-1).value
    return at


def mapped_bytes(at, size):
    """What a mapping shows; a page that is gone is an OSError, and no signal."""
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        return os.pread(memory.fileno(), size, at)


def unmap(at, size):
    libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t(size))


def test_mapping_that_outlives_its_descriptor(mount):
    """Written through a mapping after close(2): not sealed before the mapping is gone, and nothing is lost."""
    path = mount.dir / "mapped.bin"
    write_file(path, bytes(SIZE))
    at = map_shared(path, SIZE, writable=True)
    write_file(mount.dir / "later.bin", bytes(SIZE))
    wait_for(lambda: mount.status()["sealed"] == 1, 60, "the file that was written later sealed")
    time.sleep(0.5)
    assert mount.status()["dirty"] == 1
    ctypes.memmove(at + SIZE // 2, b"later", 5)
    assert read_file(path)[SIZE // 2:SIZE // 2 + 5] == b"later"
    time.sleep(1)
    ctypes.memmove(at, b"first", 5)
    unmap(at, SIZE)
    mount.wait_sealed()
    mount.remount()
    expected = bytearray(SIZE)
    expected[SIZE // 2:SIZE // 2 + 5], expected[:5] = b"later", b"first"
    assert read_file(path) == expected


def test_mapped_while_it_is_shared(mount):
    """A duplicate's bytes stay under a mapping whose descriptor is closed, whatever the store does with them."""
    content = random_bytes(1, SIZE)
    sealed_file(mount, "first.bin", content)
    write_file(mount.dir / "second.bin", content)
    at = map_shared(mount.dir / "second.bin", SIZE, writable=False)
    wait_for(lambda: mount.status()["dirty"] == 0, 60, "the duplicate sealed")
    time.sleep(1)
    assert mapped_bytes(at, SIZE) == content
    os.unlink(mount.dir / "first.bin")
    time.sleep(1)
    assert mapped_bytes(at, SIZE) == content
    os.unlink(mount.dir / "second.bin")
    time.sleep(1)
    assert mapped_bytes(at, SIZE) == content
    unmap(at, SIZE)
    wait_for(lambda: mount.wait_sealed()["stored_bytes"] == 0, 60, "the space of what was removed")


def test_appended_while_it_is_followed(mount):
    """tail -f beside a program that opens its log anew for each line: dirty, sealed, small and large."""
    path = mount.dir / "train.log"
    expected = b""
    write_file(path, b"")
    reader = os.open(path, os.O_RDONLY)
    for number in range(4):
        for size in (50, 200_000):
            line = random_bytes(number, size)
            with open(path, "ab") as log:
                log.write(line)
            expected += line
            wait_for(lambda: mount.status()["dirty"] == 0, 60, "the log sealed")
            assert os.pread(reader, len(expected) + 1, 0) == expected
            assert read_file(path) == expected
    os.close(reader)
    mount.remount()
    assert read_file(path) == expected


def test_truncated_under_a_reader(mount):
    """O_TRUNC and truncate(2) of what somebody reads: as on any disk, or ETXTBSY and the old bytes."""
    old, new = random_bytes(1, SIZE), random_bytes(2, SIZE // 2)
    path = sealed_file(mount, "a.bin", old)
    sealed_file(mount, "shares.bin", old)
    with open(path, "rb", buffering=0) as reader:
        assert reader.read(10) == old[:10]
        error = errno_of(write_file, path, new)
        assert error in (0, errno.ETXTBSY)
        reader.seek(0)
        assert reader.read() == (old if error else new)
    assert read_file(mount.dir / "shares.bin") == old
    write_file(path, new)
    assert read_file(path) == new
    assert read_file(mount.dir / "shares.bin") == old


def test_clone_and_writer(mount):
    """Of two clones one is rewritten in place while the other is read and mapped."""
    content = random_bytes(1, SIZE)
    path = sealed_file(mount, "a.bin", content)
    subprocess.run(["cp", path, mount.dir / "b.bin"], check=True)
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        with open(mount.dir / "b.bin", "r+b") as g:
            g.seek(1000)
            g.write(b"changed")
        mount.wait_sealed()
        assert mapping[:] == content
    changed = content[:1000] + b"changed" + content[1007:]
    assert read_file(mount.dir / "b.bin") == changed
    os.unlink(path)
    mount.remount()
    assert read_file(mount.dir / "b.bin") == changed


def test_rewritten_after_its_clone_is_gone(mount):
    """A clone that was removed is still mapped: writing the other in place does not reach it."""
    content = random_bytes(1, SIZE)
    path = sealed_file(mount, "a.bin", content)
    subprocess.run(["cp", path, mount.dir / "b.bin"], check=True)
    with open(mount.dir / "b.bin", "rb") as f:
        mapping = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
    os.unlink(mount.dir / "b.bin")
    mount.wait_sealed()
    with open(path, "rb") as reader:
        reader.read(1)
        errno_of(write_at, path, b"changed")
        assert mapping[:] == content
    write_at(path, b"changed")
    assert mapping[:] == content
    assert read_file(path) == b"changed" + content[7:]
    mapping.close()


def write_at(path, data):
    fd = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(fd, data, 0)
    finally:
        os.close(fd)


def test_opened_before_the_copy_is_closed(mount):
    """Readers and writers that come between copy_file_range and close see the bytes."""
    content = random_bytes(1, SIZE)
    source = sealed_file(mount, "a.bin", content)
    with open(source, "rb") as f:
        target = os.open(mount.dir / "b.bin", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        assert os.copy_file_range(f.fileno(), target, SIZE) == SIZE
        assert read_file(mount.dir / "b.bin") == content
        write_at(mount.dir / "b.bin", b"changed")
        os.pwrite(target, b"more", SIZE)
        os.close(target)
    assert read_file(mount.dir / "b.bin") == b"changed" + content[7:] + b"more"
    mount.wait_sealed()
    mount.remount()
    assert read_file(mount.dir / "b.bin") == b"changed" + content[7:] + b"more"
    assert read_file(source) == content


def test_cached_pages_are_not_stale(mount):
    """Read through the driver (small, sealed), rewritten directly, read through the driver again."""
    path = mount.dir / "small.json"
    for number in range(5):
        content = random_bytes(number, 5000)
        write_file(path, content)
        assert read_file(path) == content
        mount.wait_sealed()
        assert read_file(path) == content
        with open(path, "r+b") as f:
            f.write(content[::-1])
        assert read_file(path) == content[::-1]
        mount.wait_sealed()
        assert read_file(path) == content[::-1]
