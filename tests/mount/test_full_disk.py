"""A store on a small disk of its own that fills up. Needs root, for a loop device."""

import errno
import os
import shutil
import subprocess

import pytest

from support.files import MIB, read_file, write_file
from support.mounts import wait_for

DISK_MIB = 112

pytestmark = pytest.mark.root_only


@pytest.fixture
def disk(tmp_path):
    """A directory on an ext4 of DISK_MIB MiB."""
    image, path = tmp_path / "disk.img", tmp_path / "disk"
    path.mkdir()
    with open(image, "wb") as f:
        f.truncate(DISK_MIB * MIB)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    mounted = subprocess.run(["mount", "-o", "loop", image, path], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no loop device to be had: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.fixture
def small(disk, unmounted):
    """A mount of a store on that disk."""
    unmounted.store = disk / "store"
    return unmounted.mount()


def free(path):
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def fill(directory, size):
    """Write files of `size` random bytes until there is no room; how many were whole."""
    directory.mkdir()
    for number in range(100_000):
        try:
            write_file(directory / str(number), os.urandom(size))
        except OSError as error:
            assert error.errno == errno.ENOSPC
            return number
    raise AssertionError("the disk does not fill up")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("size", [pytest.param(20_000, marks=pytest.mark.long), 3_000_000], ids=["small-files", "large-files"])
def test_full(small, size):
    """The writer gets ENOSPC; what was whole before stays so; removing works, and gives the space back."""
    content = os.urandom(10 * MIB + 1)
    write_file(small.dir / "kept.bin", content)
    small.wait_sealed()
    before = free(small.store)
    assert fill(small.dir / "filling", size) > 3
    assert read_file(small.dir / "kept.bin") == content
    shutil.rmtree(small.dir / "filling")
    small.wait_sealed()
    wait_for(lambda: free(small.store) > before - 4 * MIB, 60, "the space that was free before")
    write_file(small.dir / "again.bin", content[::-1])
    small.remount()
    assert read_file(small.dir / "kept.bin") == content
    assert read_file(small.dir / "again.bin") == content[::-1]
