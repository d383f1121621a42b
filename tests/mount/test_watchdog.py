"""Requests that hang are logged with what they wait for, and shown by `weightfs status` meanwhile."""

import os
import re
import subprocess
import time

import pytest

from support.disks import small_disk
from support.files import MIB, random_bytes, write_file
from support.mounts import wait_for

SLOW_SECONDS = 5
# The housekeeper may have been the first to write, and the request waits for it.
WAITS = r"(?:the disk: pwrite of \S*/store/weightfs\.db-wal|the database's lock)"


@pytest.fixture
def frozen(tmp_path, unmounted):
    """A mount of a store on a disk that the test freezes (writes wait), thawed afterwards whatever happens."""
    with small_disk("ext4", tmp_path, 112 * MIB) as disk:
        unmounted.store = disk / "store"
        unmounted.disk = disk
        try:
            yield unmounted
        finally:
            subprocess.run(["fsfreeze", "-u", disk], capture_output=True)
            unmounted.end()
            unmounted.store = tmp_path / "nothing"


def hanging(mount):
    """What status says, as its first lines: the database itself may wait for the disk, so not to its end."""
    process = subprocess.Popen([mount.weightfs, "status", mount.store], stdout=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    return process, line


@pytest.mark.root_only
@pytest.mark.parametrize("passthrough", ["auto", pytest.param("off", marks=[pytest.mark.long, pytest.mark.endurance])])
def test_disk_that_hangs(frozen, passthrough):
    """The operation, the file, the caller, how long and what for; in the log once, and once more when it ends."""
    mount = frozen.mount(f"passthrough={passthrough}")
    write_file(mount.dir / "kept.bin", random_bytes(1, MIB))
    mount.wait_sealed()
    kept = os.open(mount.dir / "kept.bin", os.O_RDONLY)  # the directory is locked by whoever makes something in it
    subprocess.run(["fsfreeze", "-f", mount.disk], check=True)
    writer = subprocess.Popen(["mkdir", mount.dir / "directory"])
    time.sleep(SLOW_SECONDS + 2.5)
    assert writer.poll() is None
    if passthrough == "auto":  # else the driver may wait for the lock of a page that the freeze holds
        assert os.pread(kept, MIB // 2, 0) == random_bytes(1, MIB)[:MIB // 2], "what needs no write goes on"
    status, line = hanging(mount)
    assert re.match(rf"HANGS    for \d+ s: (LOOKUP|MKDIR) of inode 1, by process {writer.pid} \(mkdir\); "
                    rf"it waits for {WAITS}", line), line
    subprocess.run(["fsfreeze", "-u", mount.disk], check=True)
    assert writer.wait(60) == 0
    os.close(kept)
    assert (mount.dir / "directory").is_dir()
    status.stdout.read()
    assert status.wait(60) == 0
    log = wait_for(lambda: "has ended" in mount.log() and mount.log(), 20, "the end in the log")
    begun = re.findall(r"a request hangs for ([\d.]+) s: \w+ of inode 1(?: /)?, by process (\d+) \(mkdir\); "
                       rf"it waits for {WAITS}", log)
    assert len(begun) == 1 and float(begun[0][0]) >= SLOW_SECONDS and int(begun[0][1]) == writer.pid, log
    ended = re.findall(r"a request that hung has ended after ([\d.]+) s: \w+ of inode 1, by", log)
    assert len(ended) == 1 and float(ended[0]) >= SLOW_SECONDS, log
    assert mount.status()["hanging"] == []
    mount.umount()


def test_driver_that_is_stopped(mount):
    """A driver that answers nothing is looked at from outside; unmounting a mount like that always works."""
    write_file(mount.dir / "a.bin", random_bytes(1, MIB))
    mount.wait_sealed()
    with mount.stopped():
        reader = subprocess.Popen(["stat", mount.dir / "absent"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.5)
        assert reader.poll() is None
        status = mount.status()
        assert status["hanging"] == [] and status["files"] == 1
        subprocess.run(["fusermount3", "-u", "-z", mount.dir], check=True, timeout=60)
        assert not mount.mounted
    assert reader.wait(60) == 1
    pid = mount.pid
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), 60, "the driver's end")
    mount.pid = None


@pytest.mark.endurance
@pytest.mark.long
def test_nothing_is_logged_of_quick_requests(mount):
    """A mount that works says nothing."""
    for number in range(200):
        write_file(mount.dir / str(number), b"x" * 1000)
    time.sleep(SLOW_SECONDS + 1.5)
    assert "hang" not in mount.log()
    assert mount.status()["hanging"] == []
