"""A store on a disk whose power can be cut. Needs root.

The disk is a file system of its own on a loop device. A cut shuts it down
without writing its log (what xfstests' shutdown does): whatever it had not written
to the device is gone once it is unmounted, and the next mount replays its log, as
after a power cut. The machine goes on, so the driver is told by
WEIGHTFS_BOOT_ID that it is not the boot of before.
"""

import contextlib
import fcntl
import os
import shutil
import sqlite3
import struct
import subprocess
import time

import pytest

from support.disks import MKFS
from support.mounts import data_files

SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN: _IOR('X', 125, __u32)
WITHOUT_LOG = 2        # *_NOLOGFLUSH
UMOUNT_SECONDS = 30

# The kinds of disk, and what they are mounted with. Not ext4 with discard: after the shutdown it still discards blocks
# that a transaction would have freed which never reaches its log, and files lose bytes that were on the disk.
DISKS = {
    "ext4": ("ext4", []),
    "ext4-writeback": ("ext4", ["data=writeback"]),
    "xfs": ("xfs", ["discard"]),
}


def disks(*short):
    """All kinds, as parameters of a fixture; those that are not in `short` only in the long form."""
    return [kind if kind in short else pytest.param(kind, marks=pytest.mark.long) for kind in DISKS]


def run(*command):
    return subprocess.run([str(word) for word in command], capture_output=True, text=True)


class Disk:
    """One of DISKS, mounted at `path`."""

    def __init__(self, kind, base, size=0):
        self.kind, options = DISKS[kind]
        self.options = ",".join(["loop", *options])
        self.image, self.path = base / f"{kind}.img", base / "disk"
        command, least = MKFS[self.kind]
        self.path.mkdir()
        with open(self.image, "wb") as f:
            f.truncate(max(size, least))
        subprocess.run([*command, self.image], check=True, capture_output=True)
        done = self._mount()
        if done.returncode != 0:
            pytest.skip(f"no {kind} to be had on a loop device: {done.stderr.strip()}")

    def _mount(self):
        return run("mount", "-o", self.options, self.image, self.path)

    def mount(self):
        """Anew: who copies the mounts of the machine at this moment (unshare) keeps the dead file system alive for a while."""
        deadline = time.monotonic() + UMOUNT_SECONDS
        while True:
            done = self._mount()
            assert done.returncode == 0, done.stderr
            try:
                (self.path / "probe").touch()
                (self.path / "probe").unlink()
                return
            except OSError:
                assert time.monotonic() < deadline, "the disk is still the one that was shut down"
            self.umount()
            time.sleep(0.2)

    def cut(self):
        """From here on nothing reaches the disk, what it had not written included."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", WITHOUT_LOG))
        finally:
            os.close(fd)

    def umount(self):
        deadline = time.monotonic() + UMOUNT_SECONDS
        while (done := run("umount", self.path)).returncode != 0:
            assert time.monotonic() < deadline, done.stderr
            time.sleep(0.02)

    def remove(self):
        if os.path.ismount(self.path):
            self.umount()
        self.image.unlink()


class Power:
    """A Mount whose store is on a Disk."""

    def __init__(self, mount, disk):
        self.mount, self.disk = mount, disk
        self.boots = 0
        self.found, self.files = disk.image.with_name("found"), {}
        self.is_cut = False  # what fails from then on fails for that
        mount.store = disk.path / "store"

    def boot(self, *options):
        """Mount the store, as in a boot of its own."""
        self._begin_boot()
        return self.mount.mount(*(options or self.mount.options))

    def _begin_boot(self):
        self.boots += 1
        os.environ["WEIGHTFS_BOOT_ID"] = f"boot {self.boots}"

    def write_back_log(self):
        """The database's log reaches the disk, and nothing else with it."""
        fd = os.open(self.mount.store / "weightfs.db-wal", os.O_RDONLY)
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)

    def write_back(self, generator):
        """What a kernel may do at any time: files of the store reach the disk, in no order."""
        choice = generator.random()
        store = self.mount.store
        if choice < 0.4:
            paths = [store / "weightfs.db-wal"]
        elif choice < 0.6:
            paths = generator.sample(found := data_files(store), len(found) // 2)
        else:
            return
        for path in paths:
            try:
                fd = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                continue
            try:
                os.fdatasync(fd)
            finally:
                os.close(fd)

    def cut(self, generator=None):
        """Cut the power, and end what is left of the mount."""
        if generator:
            self.write_back(generator)
        self.is_cut = True
        self.disk.cut()
        self.mount.kill()

    def keep_as_found(self):
        """Database and data files as the cut left them, for describe()."""
        shutil.rmtree(self.found, ignore_errors=True)
        self.found.mkdir()
        for path in self.mount.store.glob("weightfs.db*"):
            shutil.copy(path, self.found)
        self.files = {int(path.name, 16): (path.stat().st_size, path.stat().st_mtime_ns)
                      for path in data_files(self.mount.store)}

    def describe(self, ino):
        """What was found of an inode after the cut: its row and its staging file's size and mtime."""
        with contextlib.closing(sqlite3.connect(self.found / "weightfs.db")) as db:
            row = db.execute("SELECT ino, size, mtime_ns, ctime_ns, btime_ns, hex(target), manifest, data_file, verdict, "
                             "reason FROM inode WHERE ino = ?", [ino]).fetchone()
        return row, row and self.files.get(row[7])

    def restore(self, *options):
        """Power again: the disk replays its log; the store must be in order as it is, and is mounted."""
        self.disk.umount()
        self._begin_boot()
        self.disk.mount()
        self.keep_as_found()
        # A staging file that nobody made durable may be gone; what has its name is reported by the mount.
        found = [one for one in self.mount.fsck()["findings"] if one["kind"] != "data-file-missing"]
        assert found == [], found
        self.is_cut = False
        return self.mount.mount(*(options or self.mount.options))

    def end(self):
        os.environ.pop("WEIGHTFS_BOOT_ID", None)
        orderly = self.mount.end()
        try:
            if os.path.ismount(self.disk.path) and not self.is_cut:
                self.mount.assert_clean()
        finally:
            self.disk.remove()
        assert orderly, "the mount had to be ended by force"
