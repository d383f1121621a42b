"""Space and seeking: fallocate, holes, large offsets."""

import errno
import hashlib
import mmap
import os

import pytest

from support.files import (FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, KIB, MIB, errno_of, fallocate,
                           random_bytes, read_file, segments, sha256, write_file)
from support.mounts import SETTLES


def test_fallocate(mount):
    """Allocate (with and without the size), punch, zero: sizes and bytes as fallocate(2) says."""
    path = mount.dir / "file"
    content = bytearray(random_bytes(1, 300_000))
    write_file(path, content)
    fd = os.open(path, os.O_RDWR)
    os.posix_fallocate(fd, 0, 400_000)
    content += bytes(100_000)
    fallocate(fd, FALLOC_KEEP_SIZE, 0, MIB)
    fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 5000, 100_000)
    content[5000:105_000] = bytes(100_000)
    fallocate(fd, FALLOC_ZERO_RANGE, 200_000, 300_000)
    content[200_000:] = bytes(300_000)
    assert os.fstat(fd).st_size == len(content)
    assert os.pread(fd, MIB, 0) == content
    assert errno_of(fallocate, fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 0, 0) == errno.EINVAL
    os.close(fd)
    mount.remount()
    assert read_file(path) == content


@pytest.mark.parametrize("how", SETTLES)
def test_seek_data_and_hole(mount, how):
    """SEEK_DATA and SEEK_HOLE never call data a hole, and see a great hole; past the end is ENXIO."""
    path = mount.dir / "file"
    with open(path, "wb") as f:
        f.write(b"x" * 4096)
        f.seek(8 * MIB)
        f.write(b"y" * 4096)
    mount.settle(how)
    size = 8 * MIB + 4096
    with open(path, "rb") as f:
        fd = f.fileno()
        assert os.lseek(fd, 0, os.SEEK_DATA) == 0
        assert os.lseek(fd, 100, os.SEEK_DATA) == 100
        hole = os.lseek(fd, 0, os.SEEK_HOLE)
        assert 4096 <= hole <= 128 * KIB
        assert 7 * MIB < os.lseek(fd, hole, os.SEEK_DATA) <= 8 * MIB
        assert os.lseek(fd, 8 * MIB, os.SEEK_HOLE) == size
        assert errno_of(os.lseek, fd, size, os.SEEK_DATA) == errno.ENXIO
        assert errno_of(os.lseek, fd, size, os.SEEK_HOLE) == errno.ENXIO
        assert os.lseek(fd, -1, os.SEEK_END) == size - 1


# Where 31 and 32 bits end, and beyond.
EDGES = [1 << 31, 1 << 32, (1 << 40) + 5, (1 << 43) + 1]


@pytest.mark.parametrize("how", SETTLES)
def test_large_offsets(mount, how):
    """Bytes on both sides of every limit of an offset are written, read, found by SEEK_DATA and mapped."""
    path = mount.dir / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    for edge in EDGES:
        os.pwrite(fd, b"%16d" % edge, edge - 8)
    os.close(fd)
    if how != "sealed":  # holes of more than 16 GiB: such a file is served as it was written
        mount.settle(how)
    fd = os.open(path, os.O_RDONLY)
    assert os.fstat(fd).st_size == EDGES[-1] + 8
    for edge in EDGES:
        assert os.pread(fd, 16, edge - 8) == b"%16d" % edge
        assert 0 <= edge - 8 - os.lseek(fd, edge - 8 - MIB, os.SEEK_DATA) <= MIB
        begin = (edge - 8) // mmap.PAGESIZE * mmap.PAGESIZE
        with mmap.mmap(fd, 2 * mmap.PAGESIZE if begin + 2 * mmap.PAGESIZE <= EDGES[-1] else EDGES[-1] + 8 - begin,
                       prot=mmap.PROT_READ, offset=begin) as m:
            assert m[edge - 8 - begin:edge + 8 - begin] == b"%16d" % edge
    assert os.pread(fd, 10, EDGES[-1] + 8) == b""
    os.close(fd)


def test_largest_size(mount, plain):
    """What ftruncate(2) and pwrite(2) say of sizes up to 2^63 - 1 is what the disk says."""
    def act(root):
        fd = os.open(root / "file", os.O_RDWR | os.O_CREAT)
        found = []
        for bits in range(40, 63):
            for size in ((1 << bits) - 4096, 1 << bits):
                before = os.fstat(fd).st_size
                code = errno_of(os.ftruncate, fd, size)
                found.append((size, code, os.fstat(fd).st_size == (before if code else size)))
                found.append((size, errno_of(os.pwrite, fd, b"x", size)))
                os.ftruncate(fd, 0)
        os.close(fd)
        return found

    assert act(mount.dir) == act(plain)


def allocation(root, path_of_bytes):
    """Each mode of fallocate(2), at places that are aligned and that are not; what is there afterwards."""
    found = []
    modes = {"allocate": 0, "keep": FALLOC_KEEP_SIZE, "punch": FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE,
             "zero": FALLOC_ZERO_RANGE, "zero and keep": FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE}
    for name, mode in modes.items():
        for offset, length in ((0, 4096), (1, 4094), (4095, 2), (0, 300_000), (100_000, 200_000), (65536, 65536),
                               (299_999, 1), (300_000, 1), (400_000, 4096), (0, 1 << 20)):
            path = root / f"{name}-{offset}-{length}"
            write_file(path, path_of_bytes)
            with open(path, "r+b") as f:
                code = errno_of(fallocate, f.fileno(), mode, offset, length)
                f.seek(7)
                f.write(b"written")
            found.append((path.name, code, sha256(path), os.stat(path).st_size))
    return found


def test_fallocate_everywhere(mount, plain):
    """Bytes and sizes after each mode of fallocate(2) are those of the disk, and stay."""
    content = random_bytes(1, 300_000)
    expected, found = (allocation(root, content) for root in (plain, mount.dir))
    assert found == expected
    for how in SETTLES:
        mount.settle(how)
        assert [(path.name, sha256(path)) for path in sorted(mount.dir.iterdir())] == [
            (path.name, sha256(path)) for path in sorted(plain.iterdir())], how


def test_space_of_holes(mount):
    """Holes take no space, and a hole that is punched gives it back."""
    path = mount.dir / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 256 * MIB)
    assert os.fstat(fd).st_blocks == 0
    os.pwrite(fd, random_bytes(1, 4 * MIB), 128 * MIB)
    assert 4 * MIB <= os.fstat(fd).st_blocks * 512 < 5 * MIB
    fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 129 * MIB, 3 * MIB)
    assert MIB <= os.fstat(fd).st_blocks * 512 < 2 * MIB
    os.close(fd)
    mount.wait_sealed()
    assert mount.disk() < 3 * MIB


def test_seeking_is_exact_where_it_can_be(mount):
    """SEEK_DATA and SEEK_HOLE visit every byte that is not zero, dirty or sealed, whatever the pattern."""
    written = [(0, 1), (70_000, 5000), (300_000, 100_000), (2 * MIB + 17, 1), (9 * MIB, 65536)]
    size = 12 * MIB + 1
    path = mount.dir / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, size)
    for offset, length in written:
        os.pwrite(fd, b"x" * length, offset)
    os.close(fd)
    for how in SETTLES:
        mount.settle(how)
        fd = os.open(path, os.O_RDONLY)
        found = segments(fd)
        assert all(any(begin <= offset and offset + length <= end for begin, end in found)
                   for offset, length in written), how
        assert sum(end - begin for begin, end in found) < 1 * MIB
        assert os.lseek(fd, size - 1, os.SEEK_HOLE) == size - 1
        assert errno_of(os.lseek, fd, 11 * MIB, os.SEEK_DATA) == errno.ENXIO
        os.close(fd)


def test_seek_below_a_writer(mount):
    """What another descriptor has just written, or punched, is seen by lseek(2) and read(2) at once."""
    path = mount.dir / "file"
    writer, reader = os.open(path, os.O_RDWR | os.O_CREAT), os.open(path, os.O_RDONLY)
    os.ftruncate(writer, 4 * MIB)
    assert errno_of(os.lseek, reader, 0, os.SEEK_DATA) == errno.ENXIO
    os.pwrite(writer, b"x" * 4096, MIB)
    assert os.lseek(reader, 0, os.SEEK_DATA) == MIB
    fallocate(writer, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, MIB, 4096)
    assert os.pread(reader, 4096, MIB) == bytes(4096)
    assert errno_of(os.lseek, reader, 0, os.SEEK_DATA) == errno.ENXIO
    os.close(writer)
    os.close(reader)


def test_vectors_and_positions(mount, plain):
    """readv, writev, preadv, pwritev, sendfile, splice: the bytes and counts of the disk."""
    def act(root):
        path = root / "file"
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        parts = [random_bytes(n, n * 997) for n in range(30)]
        found = [os.writev(fd, parts), os.pwritev(fd, parts[5:9], 100_000), os.lseek(fd, 0, os.SEEK_CUR)]
        buffers = [bytearray(n * 131) for n in range(1, 60)]
        found.append(os.preadv(fd, buffers, 50))
        found.append(bytes(b"".join(buffers)))
        other = os.open(root / "other", os.O_RDWR | os.O_CREAT)
        found += [os.sendfile(other, fd, 3, 200_000), os.sendfile(other, fd, 0, 10)]
        read_end, write_end = os.pipe()
        found.append(os.splice(fd, write_end, 5000, offset_src=7))
        found.append(os.splice(read_end, other, 5000, offset_dst=1000))
        found.append(os.copy_file_range(fd, other, 70_000, 11, 222))
        for one in (fd, other, read_end, write_end):
            os.close(one)
        return [*found, sha256(path), sha256(root / "other")]

    assert act(mount.dir) == act(plain)


def test_direct(mount, plain):
    """O_DIRECT: aligned reads and writes, the end of the file, mixed with buffered and mapped ones."""
    def act(root):
        path = root / "file"
        write_file(path, random_bytes(1, 1_000_000))
        block = mmap.mmap(-1, 65536)
        fd, direct = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR | os.O_DIRECT)
        found = [os.preadv(direct, [block], 4096), sha(block), os.preadv(direct, [block], 999_424), sha(block[:576])]
        block[:] = b"d" * 65536
        found += [os.pwritev(direct, [block], 65536), sha(os.pread(fd, 200_000, 1000))]
        os.pwrite(fd, b"buffered", 70_000)
        found += [os.preadv(direct, [block], 65536), sha(block)]
        with mmap.mmap(fd, 0) as m:
            m[66_000] = 77
            m.flush()
            found += [os.preadv(direct, [block], 65536), sha(block)]
        os.close(fd)
        os.close(direct)
        return [*found, sha256(path)]

    assert act(mount.dir) == act(plain)
    before = sha256(plain / "file")
    for how in SETTLES:
        mount.settle(how)
        assert sha256(mount.dir / "file") == before


def sha(data):
    return hashlib.sha256(data).hexdigest()
