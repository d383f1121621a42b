"""Who may reach what: the store's own modes, links planted in it, and the driver's door for commands."""

import errno
import fcntl
import os
import shutil
import struct
import subprocess

import pytest

from support import shards
from support.files import MIB, errno_of, in_child, random_bytes, tree_hashes, write_file
from support.mounts import data_files, wait_for

STEP = struct.Struct("QQQII")
IOC_REPACK = 2 << 30 | STEP.size << 16 | 0x57 << 8 | 1


@pytest.mark.parametrize("umask", [0, 0o077, 0o777], ids=oct)
@pytest.mark.parametrize("made", [False, True], ids=["missing", "there"])
def test_modes_of_a_store(unmounted, umask, made):
    """Whatever the umask: 0700 and 0600 throughout; in a directory that was there before, all that is in it."""
    if made:
        unmounted.store.mkdir(mode=0o755)
    old = os.umask(umask)
    try:
        unmounted.mount()
    finally:
        os.umask(old)
    write_file(unmounted.dir / "a.bin", random_bytes(1, MIB))
    os.mkdir(unmounted.dir / "d", 0o755)
    unmounted.wait_sealed()
    assert (unmounted.dir / "a.bin").stat().st_mode & 0o777 == 0o666 & ~old
    names = list(unmounted.store.rglob("*"))
    assert {"weightfs.db", "weightfs.db-wal", "weightfs.db-shm", "lock", "data", "weightfs.log"} <= {p.name for p in names}
    for path in names + ([] if made else [unmounted.store]):
        assert path.lstat().st_mode & 0o7777 == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("name", ["weightfs.db", "lock", "weightfs.log", "data", "data/xx"])
def test_planted_links(unmounted, tmp_path, name):
    """A link in place of a part of the store is not followed: the mount is refused, and what it leads to is untouched."""
    unmounted.mount()
    write_file(unmounted.dir / "a.bin", random_bytes(1, MIB))
    unmounted.umount()
    expected = tree_hashes(unmounted.store)
    if name == "data/xx":
        name = str(data_files(unmounted.store)[0].parent.relative_to(unmounted.store))
    outside = tmp_path / "outside"
    shutil.move(unmounted.store / name, outside)
    os.symlink(outside, unmounted.store / name)
    before = tree_hashes(outside) if outside.is_dir() else outside.read_bytes()
    refused = unmounted.run("mount", unmounted.store, unmounted.dir, check=False)
    assert refused.returncode == 1 and refused.stderr, name
    assert not unmounted.mounted
    unmounted.run("fsck", unmounted.store, check=False)
    unmounted.run("backup", unmounted.store, tmp_path / "backup", check=False)
    assert (tree_hashes(outside) if outside.is_dir() else outside.read_bytes()) == before
    os.unlink(unmounted.store / name)
    shutil.move(outside, unmounted.store / name)
    assert {n: h for n, h in tree_hashes(unmounted.store).items() if n.startswith("data")} == {
        n: h for n, h in expected.items() if n.startswith("data")}


def test_planted_data_file(unmounted, tmp_path):
    """A link in place of one data file is read as an error, never as what it leads to."""
    unmounted.mount()
    write_file(unmounted.dir / "a.bin", random_bytes(1, MIB))
    unmounted.umount()
    [path] = [path for path in data_files(unmounted.store) if path.stat().st_size]
    secret = tmp_path / "secret"
    shutil.move(path, secret)
    os.symlink(secret, path)
    unmounted.mount()
    assert errno_of((unmounted.dir / "a.bin").read_bytes) in (errno.EIO, errno.ELOOP)
    assert errno_of(write_file, unmounted.dir / "a.bin", b"x") in (0, errno.EIO, errno.ELOOP)
    unmounted.umount()
    assert secret.read_bytes() == random_bytes(1, MIB)
    os.unlink(path) if path.is_symlink() else None
    shutil.rmtree(unmounted.store)


def let_others_pass(directory):
    """Others may go through `directory` and what is above it."""
    for path in (directory, *directory.parents):
        if path.stat().st_uid == os.geteuid() and not path.stat().st_mode & 0o001:
            path.chmod(path.stat().st_mode | 0o011)


def ask_repack(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, IOC_REPACK, bytearray(STEP.size))
    finally:
        os.close(fd)


@pytest.mark.root_only
def test_other_users(unmounted, other_user):
    """Without allow_other nobody else gets in; with it, modes decide, and commands to the driver are its owner's."""
    unmounted.mount()
    write_file(unmounted.dir / "a.bin", random_bytes(1, MIB), 0o644)
    unmounted.wait_sealed()
    let_others_pass(unmounted.dir.parent)
    assert in_child(errno_of, os.listdir, unmounted.dir, user=other_user) == errno.EACCES
    assert in_child(errno_of, os.listdir, unmounted.store, user=other_user) == errno.EACCES
    unmounted.umount()
    unmounted.mount("allow_other")
    os.chmod(unmounted.dir, 0o755)
    path = unmounted.dir / "a.bin"
    assert in_child(errno_of, path.read_bytes, user=other_user) == 0
    for call, args in ((ask_repack, (path,)), (os.setxattr, (path, "user.weightfs.error", b"x")),
                       (os.setxattr, (unmounted.dir, "user.weightfs.max_shard_size", b"1GB")),
                       (os.chmod, (path, 0o777)), (os.unlink, (path,)), (os.truncate, (path, 0)),
                       (os.listdir, (f"/proc/{unmounted.pid}/fd",))):
        assert in_child(errno_of, call, *args, user=other_user) in (errno.EPERM, errno.EACCES), call
    for request in (0x5701, 0x80045701, 0x8020570A, IOC_REPACK + 1):
        with open(path, "rb") as f:
            assert errno_of(fcntl.ioctl, f, request, bytearray(64)) == errno.ENOTTY
    assert errno_of(ask_repack, path) == 0
    status = subprocess.run([unmounted.weightfs, "status", unmounted.store], capture_output=True, text=True,
                            user=other_user.pw_uid, group=other_user.pw_gid, extra_groups=[])
    assert status.returncode == 1 and "a.bin" not in status.stdout + status.stderr


@pytest.mark.root_only
def test_store_of_another_user(unmounted, other_user):
    """What root's driver makes in it is its owner's, who goes on with it afterwards."""
    def theirs():
        found = {path: path.lstat() for path in (unmounted.store, *unmounted.store.rglob("*"))}
        assert all((at.st_uid, at.st_gid) == other_user[2:4] for at in found.values()), found
        assert all(at.st_mode & 0o077 == 0 for at in found.values())
        return found

    unmounted.store.mkdir(mode=0o700, exist_ok=True)
    os.chown(unmounted.store, *other_user[2:4])
    for _ in range(2):
        unmounted.mount()
        write_file(unmounted.dir / "small", b"small")
        write_file(unmounted.dir / "a.bin", random_bytes(1, MIB))
        write_file(unmounted.dir / "m.safetensors", shards.valid())
        unmounted.wait_sealed()
        unmounted.umount()
        assert len(theirs()) > 8
        (unmounted.store / "weightfs.log").unlink()
    done = subprocess.run([unmounted.weightfs, "verify", unmounted.store], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    theirs()


# ---- what the driver gives up ----

KEPT = {"chown": 0, "dac_override": 1, "dac_read_search": 2, "fowner": 3, "linux_immutable": 9, "sys_admin": 21,
        "sys_resource": 24, "lease": 28}


def status_of(pid):
    """/proc/PID/status of each thread: they all have to be in it."""
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/status") as f:
            found.append(dict(line.rstrip("\n").split(":\t", 1) for line in f if ":\t" in line))
    return found


@pytest.mark.root_only
def test_sandbox(unmounted):
    """A driver of root has the capabilities that it needs and no more, no new privileges and a filter; off: all."""
    program = open(unmounted.weightfs, "rb").read()
    sanitized = b"__asan_init" in program or b"__tsan_init" in program
    unmounted.mount()
    allowed = sum(1 << bit for bit in KEPT.values())
    threads = status_of(unmounted.pid)
    if b"__tsan_init" in program:
        # The sanitizer's own thread is there before the driver gives anything up.
        threads = [status for status in threads if status["NoNewPrivs"] == "1"]
        assert len(threads) == len(status_of(unmounted.pid)) - 1
    for status in threads:
        for key in ("CapEff", "CapPrm", "CapBnd"):
            assert int(status[key], 16) & ~allowed == 0, (key, status)
        assert int(status["CapInh"], 16) == 0 and int(status["CapEff"], 16) & 1 << KEPT["sys_admin"]
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == ("0" if sanitized else "2") and (sanitized or int(status["Seccomp_filters"]) == 1)
    assert "sandbox:" not in unmounted.log()
    write_file(unmounted.dir / "a.bin", random_bytes(1, MIB))
    unmounted.wait_sealed()
    assert subprocess.run(["sync", "-f", unmounted.dir]).returncode == 0
    os.unlink(unmounted.dir / "a.bin")
    unmounted.wait_disk(MIB // 2)
    unmounted.signal(15)
    unmounted.mount("sandbox=off")
    for status in status_of(unmounted.pid):
        assert status["Seccomp"] == "0" and status["NoNewPrivs"] == "0" and int(status["CapEff"], 16) & ~allowed


@pytest.mark.root_only
def test_killed_driver_dumps_as_ever(unmounted):
    """The filter denies nothing that an abort or a crash needs: the signal is the one that it was."""
    process = subprocess.Popen([unmounted.weightfs, "mount", "-f", unmounted.store, unmounted.dir],
                               stderr=subprocess.DEVNULL)
    wait_for(lambda: unmounted.mounted, 60, "the mount")
    wait_for(lambda: errno_of(os.listdir, unmounted.dir) == 0, 60, "its answer")
    os.kill(process.pid, 6)
    assert process.wait(60) == -6
    subprocess.run(["fusermount3", "-u", unmounted.dir], check=True)
