"""Small disks of their own, on loop devices. Needs root."""

import contextlib
import os
import subprocess

import pytest

from support.files import MIB, libc

# Bytes that a file system of each kind needs at least; the image is sparse.
MKFS = {
    "ext4": (["mkfs.ext4", "-q"], 64 * MIB),
    "xfs": (["mkfs.xfs", "-q"], 320 * MIB),
    "btrfs": (["mkfs.btrfs", "-q", "-f"], 256 * MIB),
}


@contextlib.contextmanager
def small_disk(kind, base, size=0):
    """A directory on a new file system of that kind, of at least `size` bytes."""
    command, least = MKFS[kind]
    image, path = base / f"{kind}.img", base / kind
    path.mkdir()
    with open(image, "wb") as f:
        f.truncate(max(size, least))
    subprocess.run([*command, image], check=True, capture_output=True)
    mounted = subprocess.run(["mount", "-o", "loop", image, path], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no {kind} to be had on a loop device: {mounted.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def used(path):
    """Bytes that the disk below `path` has given out, everything written to it counted."""
    fd = os.open(path, os.O_RDONLY)
    try:
        if libc.syncfs(fd) != 0:
            raise OSError("syncfs failed")
        status = os.statvfs(fd)
    finally:
        os.close(fd)
    return (status.f_blocks - status.f_bfree) * status.f_frsize
