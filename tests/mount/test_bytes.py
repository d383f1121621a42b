"""Bytes out are bytes in: every way to write, read and change a regular file.

Each content is looked at while dirty, sealed and after a remount.
"""

import ctypes
import errno
import mmap
import os
import random
import subprocess
import sys
import threading
import time

import pytest

from support import shards
from support.files import (FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, GIB, KIB, MIB, errno_of, fallocate,
                           pwrite_all, random_bytes, read_file, segments, sha256, write_all, write_file)
from support.mounts import wait_for

SMALL_FILE = 64 * KIB  # up to this size a file is kept in the database


def assert_in_every_state(mount, path, content):
    """`path` holds `content` now, sealed, and after a remount."""
    assert read_file(path) == content
    mount.wait_sealed()
    assert read_file(path) == content
    assert os.stat(path).st_size == len(content)
    mount.remount()
    assert read_file(path) == content
    assert os.stat(path).st_size == len(content)


def sealed_file(mount, name, content):
    path = mount.dir / name
    write_file(path, content)
    mount.wait_sealed()
    return path


# ---- sizes ----

def test_sizes(mount):
    """Files around every size where something changes, under names of every kind."""
    sizes = [0, 1, 7, 8, 9, 4095, 4096, 4097, SMALL_FILE - 1, SMALL_FILE, SMALL_FILE + 1, 128 * KIB,
             MIB - 1, MIB, MIB + 1, 5 * MIB + 3, 33 * MIB + 1]
    contents = {f"{size}{suffix}": random_bytes(size, size)
                for size, suffix in zip(sizes, ["", ".bin", ".pt", " with space", ".json", "-ü", "\n"] * 3)}
    for name, content in contents.items():
        write_file(mount.dir / name, content)
    for settle in (lambda: None, mount.wait_sealed, mount.remount):
        settle()
        assert sorted(os.listdir(mount.dir)) == sorted(contents)
        for name, content in contents.items():
            assert os.stat(mount.dir / name).st_size == len(content)
            assert read_file(mount.dir / name) == content


@pytest.mark.timeout(240)
@pytest.mark.long
def test_two_gib(mount):
    """A file past 2 GiB, where signed 32-bit numbers end: written and read in a stream."""
    path, chunk, size = mount.dir / "large.bin", 8 * MIB, 2 * GIB + 4097
    seed = random_bytes(5, chunk)

    def piece(at):
        return (at.to_bytes(8, "little") + seed[8:])[:min(chunk, size - at)]

    def check():
        with open(path, "rb", buffering=0) as f:
            buffer = bytearray(chunk)
            for at in range(0, size, chunk):
                wanted = piece(at)
                view, done = memoryview(buffer), 0
                while done < len(wanted) and (n := f.readinto(view[done:])):
                    done += n
                assert view[:done] == wanted, f"at {at}"
            assert f.read(1) == b""

    with open(path, "wb", buffering=0) as f:
        for at in range(0, size, chunk):
            write_all(f.fileno(), piece(at))
    mount.wait_sealed(120)
    check()
    mount.remount()
    with open(path, "rb", buffering=0) as f:
        for at in (2 * GIB - 3, 2 * GIB - 1, 2 * GIB, 2 * GIB + 4090):
            expected = b"".join(piece(start) for start in (2 * GIB - chunk, 2 * GIB))
            at_in = at - (2 * GIB - chunk)
            assert os.pread(f.fileno(), 9, at) == expected[at_in:at_in + 9]


# ---- sparse files ----

ISLANDS = [(MIB, 100_000), (20 * MIB + 5, 3 * MIB), (64 * MIB - 10, 10)]


def assert_sparse(path, size, islands):
    """Bytes right, every island in a data segment, and the great holes seen as holes."""
    with open(path, "rb") as f:
        assert os.fstat(f.fileno()).st_size == size
        at = 0
        for begin, data in islands:
            f.seek(at)
            assert not any(f.read(begin - at)), f"zeros between {at} and {begin}"
            assert f.read(len(data)) == data
            at = begin + len(data)
        assert not any(f.read())
        found = segments(f.fileno())
        for begin, data in islands:
            assert any(b <= begin and begin + len(data) <= e for b, e in found), (begin, found)
        assert sum(end - begin for begin, end in found) < 8 * MIB
        assert os.fstat(f.fileno()).st_blocks * 512 < 8 * MIB


def test_sparse(mount):
    """Holes read as zeros, are found by SEEK_HOLE and take no disk, in every state."""
    path, size = mount.dir / "sparse.bin", 80 * MIB
    islands = [(at, random_bytes(at, length)) for at, length in ISLANDS]
    with open(path, "wb") as f:
        os.ftruncate(f.fileno(), size)
        for at, data in islands:
            pwrite_all(f.fileno(), data, at)
    assert_sparse(path, size, islands)
    mount.wait_sealed()
    assert_sparse(path, size, islands)
    assert mount.disk() < 8 * MIB
    mount.remount()
    assert_sparse(path, size, islands)


def test_sparse_cp(mount):
    """cp of a sealed sparse file, and cp --sparse=always of zeros, are equal to the source and take no disk."""
    source = mount.dir / "source.bin"
    with open(source, "wb") as f:
        f.write(b"begin")
        f.truncate(40 * MIB)
    mount.wait_sealed()
    for number, option in enumerate(["auto", "always", "never"]):
        target = mount.dir / f"target{number}.bin"
        subprocess.run(["cp", f"--sparse={option}", source, target], check=True)
        assert sha256(target) == sha256(source)
    mount.wait_sealed()
    hashes = {sha256(path) for path in mount.dir.iterdir()}
    assert len(hashes) == 1


def test_hole_only(mount):
    """A file of one hole, as truncate makes it, stays one: sealed, remounted, copied."""
    path = mount.dir / "hole.bin"
    with open(path, "wb") as f:
        f.truncate(512 * MIB)
    mount.wait_sealed()
    mount.remount()
    with open(path, "rb") as f:
        assert os.fstat(f.fileno()).st_size == 512 * MIB
        assert os.pread(f.fileno(), 4096, 300 * MIB) == bytes(4096)
        assert errno_of(os.lseek, f.fileno(), 512 * MIB, os.SEEK_DATA) == errno.ENXIO
    assert mount.disk() < 4 * MIB


def test_punched(mount):
    """fallocate: a hole punched into a sealed file reads as zeros and leaves the rest."""
    content = bytearray(random_bytes(3, 4 * MIB))
    path = sealed_file(mount, "punched.bin", content)
    fd = os.open(path, os.O_RDWR)
    code = errno_of(fallocate, fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, MIB + 100, 2 * MIB)
    os.close(fd)
    if code == errno.EOPNOTSUPP:
        pytest.skip("the disk below has no holes")
    assert code == 0
    content[MIB + 100:3 * MIB + 100] = bytes(2 * MIB)
    assert_in_every_state(mount, path, content)


# ---- appends, random writes, truncation ----

@pytest.mark.parametrize("start", [0, 1000, SMALL_FILE - 5, 3 * MIB + 1])
def test_appends(mount, start):
    """Appended to dirty and sealed, by O_APPEND: each append at the end, whatever the offset of the handle."""
    content = random_bytes(1, start)
    path = mount.dir / "log.bin"
    write_file(path, content)
    for number in range(4):
        if number % 2:
            mount.wait_sealed()
        more = random_bytes(number, 10_007)
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.lseek(fd, 0, os.SEEK_SET)
        write_all(fd, more)
        os.close(fd)
        content += more
        assert read_file(path) == content
    assert_in_every_state(mount, path, content)


def test_appends_of_many(mount):
    """O_APPEND from several processes: every record is there, whole, once."""
    path, record, each, writers = mount.dir / "log.bin", 64, 200, 4
    script = ("import os, sys\n"
              "fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n"
              "for i in range(int(sys.argv[3])):\n"
              "    os.write(fd, f'{sys.argv[2]} {i}'.ljust(63).encode() + b'\\n')\n")
    processes = [subprocess.Popen([sys.executable, "-c", script, path, str(w), str(each)])
                 for w in range(writers)]
    assert [p.wait() for p in processes] == [0] * writers
    content = read_file(path)
    assert len(content) == record * each * writers
    assert (sorted(line.split() for line in content.decode().splitlines())
            == sorted([str(w), str(i)] for w in range(writers) for i in range(each)))


@pytest.mark.parametrize("sealed", [False, True])
def test_random_writes(mount, sealed):
    """Writes of odd lengths at odd offsets, past the end too, equal the same in memory."""
    generator = random.Random(11)
    model = bytearray(random_bytes(2, 2 * MIB + 777))
    path = mount.dir / "random.bin"
    write_file(path, model)
    for _ in range(4):
        if sealed:
            mount.wait_sealed()
        fd = os.open(path, os.O_RDWR)
        for _ in range(60):
            at, length = generator.randrange(3 * MIB), generator.choice([1, 3, 511, 4096, 4097, 70_001])
            data = generator.randbytes(length)
            pwrite_all(fd, data, at)
            model.extend(bytes(max(0, at + length - len(model))))
            model[at:at + length] = data
            probe = generator.randrange(len(model))
            assert os.pread(fd, 5000, probe) == model[probe:probe + 5000]
        os.close(fd)
        assert read_file(path) == model
    assert_in_every_state(mount, path, model)


@pytest.mark.parametrize("size", [5000, SMALL_FILE + 9, 2 * MIB + 1])
@pytest.mark.parametrize("sealed", [False, True])
def test_truncation(mount, size, sealed):
    """Cut, and made longer again: what was cut off reads as zeros, by path and by handle."""
    content = random_bytes(size, size)
    path = mount.dir / "cut.bin"
    write_file(path, content)
    for target in (size // 2, size, size - 1, 100, 4096, size + 70_001, 0, 3):
        if sealed:
            mount.wait_sealed()
        os.truncate(path, target)
        content = content[:target] + bytes(max(0, target - len(content)))
        assert os.stat(path).st_size == target
        assert read_file(path) == content
    with open(path, "r+b") as f:
        f.truncate(1)
        f.seek(10)
        f.write(b"x")
    assert_in_every_state(mount, path, content[:1] + bytes(9) + b"x")


def test_truncating_open(mount):
    """O_TRUNC on a sealed file gives a new content; a handle that reads sees it, as on any disk."""
    path = sealed_file(mount, "file.bin", random_bytes(1, MIB))
    with open(path, "rb", buffering=0) as reader:
        write_file(path, b"short")
        assert os.pread(reader.fileno(), 100, 0) == b"short"
    assert_in_every_state(mount, path, b"short")


# ---- mmap ----

def test_shared_mapping(mount):
    """What is written through a shared mapping is in the file, sealed or not before."""
    content = bytearray(random_bytes(4, 3 * MIB + 5))
    path = sealed_file(mount, "mapped.bin", content)
    with open(path, "r+b") as f, mmap.mmap(f.fileno(), 0) as mapping:
        for at in (0, 4095, MIB, 3 * MIB):
            mapping[at:at + 5] = content[at:at + 5] = b"12345"
        mapping.flush()
        assert os.pread(f.fileno(), len(content), 0) == content
    assert_in_every_state(mount, path, content)


def test_mapping_outlives_its_handle(mount):
    """A mapping is written through after the handle is closed and quiet time has passed: nothing is lost."""
    content = bytearray(random_bytes(4, MIB))
    path = mount.dir / "mapped.bin"
    write_file(path, content)
    with open(path, "r+b") as f:
        mapping = mmap.mmap(f.fileno(), 0)
    mapping[0:3] = content[0:3] = b"one"
    time.sleep(0.8)  # longer than the quiet time after which files are sealed
    mapping[MIB - 3:] = content[MIB - 3:] = b"two"
    mapping.close()
    assert_in_every_state(mount, path, content)


def test_private_mapping_of_a_reader(mount):
    """As torch maps shards: private, writable, the handle closed before the bytes are touched."""
    content = random_bytes(6, 5 * MIB + 1)
    path = sealed_file(mount, "weights.bin", content)
    with open(path, "rb") as f:
        mapping = mmap.mmap(f.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    mapping[0] ^= 0xFF
    assert mapping[1:] == content[1:]
    mapping.close()
    assert_in_every_state(mount, path, content)


def test_mapping_across_sealing(mount):
    """Sealing changes no byte under a reader's mapping, nor does sharing with another file."""
    content = random_bytes(8, 2 * MIB)
    first, second = mount.dir / "first.bin", mount.dir / "second.bin"
    write_file(first, content)
    mount.wait_sealed()
    write_file(second, content)
    with open(second, "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        assert mapping[:100] == content[:100]
        wait_for(lambda: mount.status()["dirty"] == 0, 60, "the second file sealed")
        assert mapping[:] == content
    mount.wait_sealed()
    assert read_file(first) == read_file(second) == content


def test_replaced_under_a_mapping(mount):
    """A shard replaced by rename while it is mapped: the mapping keeps the old bytes (save_file does it)."""
    old, new = shards.valid(1, 300_000), shards.valid(2, 300_000)
    path = sealed_file(mount, "model.safetensors", old)
    with open(path, "rb") as f:
        mapping = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
    write_file(mount.dir / ".tmp", new)
    os.rename(mount.dir / ".tmp", path)
    mount.wait_sealed()
    assert mapping[:] == old
    assert read_file(path) == new
    mapping.close()
    assert_in_every_state(mount, path, new)


# ---- several at once ----

def test_two_writers(mount):
    """Two handles that write every other stripe: both are there; one closes long before the other."""
    stripe, count = 4099, 300
    content = random_bytes(12, stripe * count)
    path = mount.dir / "striped.bin"
    fds = [os.open(path, os.O_RDWR | os.O_CREAT) for _ in range(2)]
    for number in range(count):
        at = number * stripe
        pwrite_all(fds[number % 2], content[at:at + stripe], at)
    os.close(fds[0])
    assert os.pread(fds[1], len(content), 0) == content
    os.pwrite(fds[1], b"end", len(content))
    os.close(fds[1])
    assert_in_every_state(mount, path, content + b"end")


def test_writers_in_threads(mount):
    """Eight threads write their own parts of one file at the same time."""
    part, count = 400_001, 8
    content = random_bytes(13, part * count)
    path = mount.dir / "parts.bin"
    problems = []

    def write(number):
        try:
            with open(path, "r+b", buffering=0) as f:
                for at in range(number * part, (number + 1) * part, 10_001):
                    end = min(at + 10_001, (number + 1) * part)
                    pwrite_all(f.fileno(), content[at:end], at)
        except OSError as problem:
            problems.append(problem)

    write_file(path, b"")
    threads = [threading.Thread(target=write, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert_in_every_state(mount, path, content)


def test_reader_during_a_write(mount):
    """A reader beside a writer sees a prefix of what is being written, never other bytes."""
    content = random_bytes(14, 8 * MIB)
    path = mount.dir / "growing.bin"
    write_file(path, b"")
    done, problems = threading.Event(), []

    def read():
        while not done.is_set():
            got = read_file(path)
            if got != content[:len(got)]:
                problems.append(len(got))

    thread = threading.Thread(target=read)
    thread.start()
    with open(path, "wb", buffering=0) as f:
        for at in range(0, len(content), 100_003):
            write_all(f.fileno(), content[at:at + 100_003])
    done.set()
    thread.join()
    assert problems == []
    assert_in_every_state(mount, path, content)


def test_readers_while_sealing(mount):
    """A file that is written, sealed, changed and sealed again under readers never shows a third content.

    A read beside a write may see some of it: each byte is the old or the new one.
    """
    old, new = random_bytes(1, MIB), random_bytes(2, MIB)
    at = 512 * KIB
    allowed = [set(pair) for pair in zip(old[at:at + 4096], new[at:at + 4096])]
    path = mount.dir / "busy.bin"
    write_file(path, old)
    done, problems = threading.Event(), []

    def read():
        with open(path, "rb", buffering=0) as f:
            while not done.is_set():
                got = os.pread(f.fileno(), 4096, at)
                if len(got) != 4096 or not all(map(set.__contains__, allowed, got)):
                    problems.append(got)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for content in (new, old, new):
        mount.wait_sealed()
        with open(path, "r+b", buffering=0) as f:
            write_all(f.fileno(), content)
    done.set()
    for thread in threads:
        thread.join()
    assert problems == []
    assert_in_every_state(mount, path, new)


# ---- unlinked files ----

@pytest.mark.parametrize("sealed", [False, True])
def test_write_after_unlink(mount, sealed):
    """An unlinked file lives until its last close, then gives its disk back."""
    path = mount.dir / "gone.bin"
    empty = mount.disk()
    content = bytearray(random_bytes(15, 8 * MIB))
    write_file(path, content)
    if sealed:
        mount.wait_sealed()
    fd = os.open(path, os.O_RDWR)
    path.unlink()
    assert os.listdir(mount.dir) == []
    pwrite_all(fd, b"after", 1001)
    content[1001:1006] = b"after"
    os.pwrite(fd, b"end", len(content))
    assert os.pread(fd, len(content) + 10, 0) == bytes(content) + b"end"
    assert os.fstat(fd).st_nlink == 0
    os.close(fd)
    mount.wait_disk(empty + MIB)


def test_unlinked_while_read(mount):
    """A reader goes on reading a sealed file that was unlinked; its space is given back afterwards."""
    content = random_bytes(16, 8 * MIB)
    empty = mount.disk()
    path = sealed_file(mount, "gone.bin", content)
    with open(path, "rb", buffering=0) as f:
        path.unlink()
        write_file(mount.dir / "other.bin", b"x" * SMALL_FILE * 2)
        assert os.pread(f.fileno(), len(content), 0) == content
    mount.wait_disk(empty + MIB)


# ---- sealed files written again ----

def test_sole_owner_in_place(mount):
    """One byte changed in a sealed file that nobody shares: right, and no second copy on the disk."""
    content = bytearray(random_bytes(17, 32 * MIB))
    path = sealed_file(mount, "own.bin", content)
    before = mount.disk()
    with open(path, "r+b") as f:
        f.seek(MIB)
        f.write(b"changed")
    content[MIB:MIB + 7] = b"changed"
    assert read_file(path) == content
    mount.wait_sealed()
    assert mount.disk() < before + 2 * MIB
    assert_in_every_state(mount, path, content)


def test_shared_content_is_copied(mount):
    """cp shares; writing to one copy leaves the other as it was."""
    content = random_bytes(18, 8 * MIB)
    first = sealed_file(mount, "first.bin", content)
    second, third = mount.dir / "second.bin", mount.dir / "third.bin"
    subprocess.run(["cp", first, second], check=True)
    subprocess.run(["cp", first, third], check=True)
    mount.wait_sealed()
    assert mount.disk() < 10 * MIB
    changed = bytearray(content)
    changed[5_000_000:5_000_003] = b"new"
    with open(first, "r+b") as f:
        f.seek(5_000_000)
        f.write(b"new")
    with open(second, "ab") as f:
        f.write(b"end")
    for settle in (lambda: None, mount.wait_sealed, mount.remount):
        settle()
        assert read_file(first) == changed
        assert read_file(second) == content + b"end"
        assert read_file(third) == content


def test_owner_changed_under_its_sharer(mount):
    """A file whose tensors others share is written in place: the others keep theirs."""
    tensors = {name: random_bytes(seed, 400_001) for seed, name in enumerate("abc")}
    first = sealed_file(mount, "first.bin", shards.shard(tensors))
    other = shards.shard({"x": tensors["b"], "y": random_bytes(9, 5), "z": tensors["a"]})
    second = sealed_file(mount, "second.bin", other)
    with open(first, "r+b") as f:
        f.write(b"\xff" * 600_000)
    mount.wait_sealed()
    assert read_file(second) == other
    first.unlink()
    mount.wait_sealed()
    assert_in_every_state(mount, second, other)


# ---- composed files ----

def composed(mount):
    """A sealed file whose bytes come from several extents, and what is in it."""
    sizes = {"a": 300_001, "b": 70_003, "c": 1, "d": 600_007, "e": 4096, "f": 99_999, "g": 131_072}
    first = {name: random_bytes(size, size) for name, size in sizes.items()}
    second = {name: random_bytes(sizes[name] + 1, sizes[name]) if name in "bce" else first[name]
              for name in reversed(sizes)}
    write_file(mount.dir / "first.safetensors", shards.shard(first))
    mount.wait_sealed()
    content = shards.shard(second, pad=False)
    return sealed_file(mount, "second.safetensors", content), content


def test_reads_around_boundaries(mount):
    """Every read that begins or ends next to a boundary of a composed file gives the right bytes."""
    path, content = composed(mount)
    mount.remount()
    with open(path, "rb", buffering=0) as f:
        for boundary in shards.boundaries(content):
            for begin in range(max(0, boundary - 2), boundary + 3):
                for length in (1, 2, 3, 4095, 4097, 200_000):
                    assert os.pread(f.fileno(), length, begin) == content[begin:begin + length]
    assert read_file(path) == content


@pytest.mark.parametrize("sealed", [False, True])
def test_direct_reads(mount, sealed):
    """O_DIRECT reads, at the alignment of the disk and over every boundary, bypass no check."""
    path, content = composed(mount)
    if not sealed:
        with open(path, "r+b") as f:
            f.write(content[:8])
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        if error.errno == errno.EINVAL:
            pytest.skip("no O_DIRECT here")
        raise
    buffer = mmap.mmap(-1, 1 << 20)
    for boundary in shards.boundaries(content):
        begin = max(0, boundary - 4096) // 4096 * 4096
        for length in (4096, 8192, 1 << 20):
            view = memoryview(buffer)[:length]
            done = os.preadv(fd, [view], begin)
            assert view[:done] == content[begin:begin + length]
            view.release()
    os.close(fd)


def test_direct_writes(mount):
    """O_DIRECT writes, aligned, end in the same bytes as ordinary ones."""
    path, size = mount.dir / "direct.bin", 4 * MIB
    content = bytearray(random_bytes(19, size))
    buffer = mmap.mmap(-1, size)
    buffer[:] = bytes(content)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    assert os.pwritev(fd, [memoryview(buffer)], 0) == size
    os.close(fd)
    assert_in_every_state(mount, path, content)


def test_composed_by_mapping(mount):
    """Page faults of several threads over a composed file."""
    path, content = composed(mount)
    mount.remount()
    with open(path, "rb") as f:
        mapping = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
    wrong = []

    def walk(offset):
        for at in range(offset * 4096, len(content), 4 * 4096):
            if mapping[at:at + 4096] != content[at:at + 4096]:
                wrong.append(at)

    threads = [threading.Thread(target=walk, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    mapping.close()
    assert wrong == []


def test_composed_written_again(mount):
    """A composed file that is changed becomes a file of its own; the one it shared with stays."""
    path, content = composed(mount)
    first = read_file(mount.dir / "first.safetensors")
    changed = bytearray(content)
    changed[-5:] = b"12345"
    with open(path, "r+b") as f:
        f.seek(-5, os.SEEK_END)
        f.write(b"12345")
    assert_in_every_state(mount, path, changed)
    assert read_file(mount.dir / "first.safetensors") == first


def test_composed_seek(mount):
    """SEEK_DATA and SEEK_HOLE of a composed file: all of it is data, its end a hole."""
    path, content = composed(mount)
    with open(path, "rb") as f:
        for at in shards.boundaries(content)[:-1]:
            assert os.lseek(f.fileno(), at, os.SEEK_DATA) == at
            assert os.lseek(f.fileno(), at, os.SEEK_HOLE) == len(content)
        assert errno_of(os.lseek, f.fileno(), len(content), os.SEEK_DATA) == errno.ENXIO


# ---- copy_file_range ----

def copy_range(source, target, length, source_at=0, target_at=0):
    """copy_file_range until `length` bytes are done or the source ends; bytes done."""
    done = 0
    while done < length:
        n = os.copy_file_range(source, target, length - done, source_at + done, target_at + done)
        if n == 0:
            break
        done += n
    return done


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("size", [10, SMALL_FILE, 3 * MIB + 1])
def test_copy_whole(mount, sealed, size):
    """The whole of a file, dirty or sealed, copied with the length that cp gives."""
    content = random_bytes(size, size)
    source, target = mount.dir / "source.bin", mount.dir / "target.bin"
    write_file(source, content)
    if sealed:
        mount.wait_sealed()
    with open(source, "rb") as f, open(target, "wb") as g:
        assert copy_range(f.fileno(), g.fileno(), 2**63 - 4096) == size
        assert os.fstat(g.fileno()).st_size == size
        assert read_file(target) == content
    assert read_file(source) == content
    assert_in_every_state(mount, target, content)


def test_copy_takes_no_space(mount):
    """cp -r of sealed files shares: no more disk, and little time, whatever the size."""
    model = mount.dir / "model"
    model.mkdir()
    for number in range(4):
        write_file(model / f"{number}.bin", random_bytes(number, 16 * MIB))
    mount.wait_sealed()
    before = mount.disk()
    subprocess.run(["cp", "-r", model, mount.dir / "best"], check=True)
    assert mount.disk() < before + MIB
    mount.wait_sealed()
    assert mount.disk() < before + MIB
    for number in range(4):
        assert sha256(mount.dir / "best" / f"{number}.bin") == sha256(model / f"{number}.bin")


@pytest.mark.parametrize("source_sealed", [False, True])
@pytest.mark.parametrize("target_sealed", [False, True])
def test_copy_parts(mount, source_sealed, target_sealed):
    """Parts copied into the middle, over the end, behind the end, and with nothing to copy."""
    source_bytes, target_bytes = random_bytes(1, MIB + 7), bytearray(random_bytes(2, 2 * MIB))
    source, target = mount.dir / "source.bin", mount.dir / "target.bin"
    write_file(source, source_bytes)
    if source_sealed:
        mount.wait_sealed()
    write_file(target, target_bytes)
    if target_sealed:
        mount.wait_sealed()
    with open(source, "rb") as f, open(target, "r+b") as g:
        for source_at, target_at, length in [(0, 0, 1), (5, 70_001, 300_003), (0, 2 * MIB - 5, 100_000),
                                             (MIB, 3 * MIB, 4096), (MIB + 7, 0, 100), (0, 17, MIB + 7)]:
            done = copy_range(f.fileno(), g.fileno(), length, source_at, target_at)
            expected = source_bytes[source_at:source_at + length]
            assert done == len(expected)
            target_bytes.extend(bytes(max(0, target_at + done - len(target_bytes)) if done else 0))
            target_bytes[target_at:target_at + done] = expected
            assert os.pread(g.fileno(), len(target_bytes) + 1, 0) == target_bytes
    assert read_file(source) == source_bytes
    assert_in_every_state(mount, target, target_bytes)


def test_copy_within_one_file(mount):
    """Within one file: apart it works, overlapping it is EINVAL."""
    content = bytearray(random_bytes(3, 500_000))
    path = sealed_file(mount, "self.bin", content)
    with open(path, "r+b") as f:
        fd = f.fileno()
        assert errno_of(os.copy_file_range, fd, fd, 1000, 0, 500) == errno.EINVAL
        assert copy_range(fd, fd, 100_000, 0, 300_000) == 100_000
    content[300_000:400_000] = content[:100_000]
    assert_in_every_state(mount, path, content)


def test_copy_then_source_changes(mount):
    """A copy is what the source was at that time, dirty source or not."""
    source, target = mount.dir / "source.bin", mount.dir / "target.bin"
    content = random_bytes(4, MIB)
    with open(source, "wb", buffering=0) as f, open(target, "wb") as g:
        write_all(f.fileno(), content)
        with open(source, "rb") as reader:
            assert copy_range(reader.fileno(), g.fileno(), 2**62) == len(content)
        os.pwrite(f.fileno(), b"later", 100)
    assert read_file(target) == content
    assert read_file(source) == content[:100] + b"later" + content[105:]
    assert_in_every_state(mount, target, content)


def test_sendfile(mount):
    """shutil.copy uses sendfile: out of the mount, into it, within it."""
    content = random_bytes(5, 3 * MIB + 3)
    source, target = mount.dir / "source.bin", mount.dir / "target.bin"
    write_file(source, content)
    with open(source, "rb") as f, open(target, "wb") as g:
        at = 0
        while sent := os.sendfile(g.fileno(), f.fileno(), at, 8 * MIB):
            at += sent
    assert_in_every_state(mount, target, content)


# ---- many files ----

def test_many_small_files(mount):
    """Two thousand small files, some equal: all right, in every state."""
    contents = {f"{n:05}": random_bytes(n % 700, n % 3001) for n in range(2000)}
    for name, content in contents.items():
        write_file(mount.dir / name, content)
    mount.wait_sealed(60)
    mount.remount()
    assert all(read_file(mount.dir / name) == content for name, content in contents.items())


def test_readahead_and_advice(mount):
    """posix_fadvise and readahead, as loaders call them, do no harm."""
    content = random_bytes(20, 2 * MIB)
    path = sealed_file(mount, "advised.bin", content)
    with open(path, "rb") as f:
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
        ctypes.CDLL(None).readahead(f.fileno(), ctypes.c_int64(0), ctypes.c_size_t(len(content)))
        assert f.read() == content
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        f.seek(0)
        assert f.read() == content
