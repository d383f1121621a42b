"""`weightfs backup`: a state of the store that existed, whatever is done to the store or to the backup meanwhile.

    WEIGHTFS_BACKUP_SECONDS   of writing beside backups (default 3; long form 60)
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time

import pytest

from support.disks import small_disk
from support.files import MIB, random_bytes, read_file, tree_hashes, write_file
from support.mounts import data_files, disk_blocks, filled_data_files, wait_for
from support.shards import shard

SECONDS = float(os.environ.get("WEIGHTFS_BACKUP_SECONDS", "3"))
LONG_SECONDS = max(SECONDS, 60)
STRIDE = 9  # of the kill points, in the short form
WRITERS = 3


class Backup:
    """Backups of one mounted store, each looked at as a store of its own."""

    def __init__(self, mount, base):
        self.mount, self.base = mount, base
        self.dir = base / "backup"
        self.count = 0

    def run(self, source=None, to=None, **how):
        return self.mount.run("backup", "--json", source or self.mount.store, to or self.dir, timeout=300, **how)

    def make(self, source=None, to=None):
        return json.loads(self.run(source, to).stdout)

    def assert_clean(self, store=None):
        done = self.mount.run("fsck", "--bytes", "--json", store or self.dir, check=False, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr

    def restored(self, store=None):
        """A copy of it by cp, mounted: fsck before and after is clean; what `look` gives of the mount."""
        self.count += 1
        copy, mnt = self.base / f"restored-{self.count}", self.base / f"look-{self.count}"
        shutil.copytree(store or self.dir, copy)
        mnt.mkdir()
        self.assert_clean(copy)
        return Look(self, copy, mnt)


class Look:
    def __init__(self, backup, store, mnt):
        self.backup, self.store, self.mnt = backup, store, mnt

    def __enter__(self):
        self.backup.mount.run("mount", self.store, self.mnt)
        return self.mnt

    def __exit__(self, *_):
        self.backup.mount.run("umount", self.mnt)
        self.backup.assert_clean(self.store)
        shutil.rmtree(self.store)


@pytest.fixture
def backup(mount, tmp_path):
    return Backup(mount, tmp_path)


def fill(directory, seed=0):
    """Files of every kind: small, large, equal, shared in part, sparse, links, xattrs."""
    directory.mkdir(exist_ok=True)
    tensors = {name: random_bytes(ord(name) + seed, MIB // 2) for name in "abcd"}
    write_file(directory / "base.safetensors", shard(tensors))
    write_file(directory / "tuned.safetensors", shard({**tensors, "c": random_bytes(7 + seed, MIB // 2)}))
    write_file(directory / "large.bin", random_bytes(50 + seed, 3 * MIB + 5))
    write_file(directory / "small.txt", b"small")
    write_file(directory / "empty", b"")
    with open(directory / "sparse.bin", "wb") as f:
        f.seek(9 * MIB)
        f.write(random_bytes(60 + seed, 100_000))
        f.truncate(20 * MIB)
    os.symlink("small.txt", directory / "link")
    os.link(directory / "small.txt", directory / "hard")
    os.setxattr(directory / "small.txt", "user.note", b"kept")
    os.utime(directory / "large.bin", ns=(10**18, 10**18 + 123456789))


QUICK = {("dirty", "directory"), ("sealed", "pipe"), ("unmounted", "file")}


def cases():
    for state in ("dirty", "sealed", "unmounted", "read-only"):
        for form in ("directory", "file", "pipe"):
            yield pytest.param(state, form, marks=[] if (state, form) in QUICK else [pytest.mark.long, pytest.mark.endurance])


@pytest.mark.parametrize("state,form", cases())
def test_what_is_in_it(backup, state, form):
    """Every form, of a store in every state, has names, bytes, attributes; restoring is cp -r, or tar x."""
    mount = backup.mount
    fill(mount.dir / "d")
    if state != "dirty":
        mount.wait_sealed()
    expected = tree_hashes(mount.dir)
    if state in ("unmounted", "read-only"):
        mount.umount()
    if state == "read-only":
        mount.mount("ro")
    source = mount.dir if mount.mounted else mount.store
    if form == "directory":
        assert backup.make(source)["unsteady"] == []
        backup.assert_clean()
    else:
        archive = backup.base / "backup.tar"
        if form == "file":
            assert backup.make(source, archive)["unsteady"] == []
        else:
            with open(archive, "wb") as out:
                subprocess.run([mount.weightfs, "backup", source, "-"], stdout=out, check=True)
        assert archive.stat().st_size < 11 * MIB, "holes are not stored"
        backup.dir.mkdir()
        subprocess.run(["tar", "-xf", archive, "-C", backup.dir], check=True)
    with backup.restored() as restored:
        assert tree_hashes(restored) == expected
        assert os.getxattr(restored / "d" / "hard", "user.note") == b"kept"
        assert (restored / "d" / "large.bin").stat().st_mtime_ns == 10**18 + 123456789
        assert (restored / "d" / "hard").stat().st_nlink == 2
    assert not [name for name in os.listdir(backup.base) if name.startswith(".weightfs-backup")]


def test_incremental(backup):
    """A second run copies what is new, byte for byte no more, and removes what is gone."""
    mount = backup.mount
    fill(mount.dir / "d")
    mount.wait_sealed()
    first = backup.make()
    assert first["files_kept"] == 0 and first["files_copied"] == len(filled_data_files(mount.store))
    again = backup.make()
    assert (again["files_copied"], again["bytes_copied"], again["files_removed"]) == (0, 0, 0)
    assert again["files_kept"] == first["files_copied"]
    write_file(mount.dir / "new.bin", random_bytes(99, 2 * MIB))
    os.unlink(mount.dir / "d" / "large.bin")
    mount.wait_sealed()
    third = backup.make()
    assert (third["files_copied"], third["bytes_copied"], third["files_removed"]) == (1, 2 * MIB, 1)
    assert len(data_files(backup.dir)) == len(filled_data_files(mount.store))
    with open(mount.dir / "new.bin", "r+b") as f:  # the pack is taken back in place, and written
        f.write(b"changed")
    mount.wait_sealed()
    fourth = backup.make()
    assert (fourth["files_copied"], fourth["bytes_copied"]) == (1, 2 * MIB)
    expected = tree_hashes(mount.dir)
    with backup.restored() as restored:
        assert tree_hashes(restored) == expected


def test_refused(backup, tmp_path):
    """What is no backup of this store is not touched; each refusal says why."""
    mount = backup.mount
    write_file(mount.dir / "a.bin", random_bytes(1, MIB))
    mount.wait_sealed()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    write_file(foreign / "mine.txt", b"mine")
    assert "not empty and no backup" in backup.run(to=foreign, check=False).stderr
    assert os.listdir(foreign) == ["mine.txt"]
    assert "not apart" in backup.run(to=mount.store / "inside", check=False).stderr
    assert "neither a store" in backup.run(source=foreign, check=False).stderr
    other, look = tmp_path / "other", tmp_path / "look"
    look.mkdir()
    mount.run("mount", other, look)
    mount.run("umount", look)
    assert "no backup any more" in backup.run(to=other, check=False).stderr
    backup.make()
    assert "another store" in backup.run(source=other, check=False).stderr
    mount.run("mount", backup.dir, look, "-o", "ro")
    assert "is mounted" in backup.run(check=False).stderr
    mount.run("umount", look)
    backup.make()
    mount.run("mount", backup.dir, look)
    write_file(look / "work.txt", b"work")
    mount.run("umount", look)
    assert "no backup any more" in backup.run(check=False).stderr
    mount.run("mount", backup.dir, look)
    assert read_file(look / "work.txt") == b"work"
    mount.run("umount", look)


# ---- while the store is used ----

def content_of(writer, version, size):
    head = f"{writer} {version} {size}\n".encode()
    return head + random_bytes(writer * 1_000_003 + version, size)


def check_whole(content):
    """The version of a file that was written by content_of; all of its bytes must be of that version."""
    writer, version, size = map(int, content.split(b"\n", 1)[0].split())
    assert content == content_of(writer, version, size)
    return version


class Writer(threading.Thread):
    """Replaces its files by rename, the first before the second; makes, changes and removes others."""

    def __init__(self, mount, number, stop):
        super().__init__(daemon=True)
        self.dir = mount.dir / f"writer-{number}"
        self.number, self.stop, self.problem, self.version = number, stop, None, 0
        self.dir.mkdir()
        self.random = random.Random(number)

    def replace(self, name, version):
        size = self.random.choice([3000, 70_000, 900_000])
        write_file(self.dir / f"{name}.tmp", content_of(self.number, version, size))
        os.rename(self.dir / f"{name}.tmp", self.dir / name)

    def run(self):
        try:
            while not self.stop.is_set():
                self.version += 1
                self.replace("first", self.version)
                self.replace("second", self.version)
                self.replace(f"many-{self.version % 7}", self.version)
                if self.version % 5 == 0:
                    os.unlink(self.dir / f"many-{self.version % 7}")
                again = self.dir / f"many-{self.random.randrange(7)}"
                if again.exists():
                    os.close(os.open(again, os.O_RDWR))  # sealed meanwhile, it is dirty again
                write_file(self.dir / f"{self.version % 4}.safetensors",
                           shard({name: random_bytes(ord(name) + self.version % 9, 80_000) for name in "abcde"}))
        except BaseException as problem:
            self.problem = problem


def put_tensors(mount, stop, problems):
    np = pytest.importorskip("numpy")
    tensors = mount.dir / "model" / ".tensors"
    try:
        number = 0
        while not stop.is_set():
            number += 1
            np.save(mount.dir / "one.npy", np.full(30_000, number % 11, "float32"))
            shutil.copyfile(mount.dir / "one.npy", tensors / f"t{number % 5}.npy")
            mount.run("repack", mount.dir / "model", check=False)
    except BaseException as problem:
        problems.append(problem)


def back_up_under_load(backup, seconds):
    mount, stop, problems = backup.mount, threading.Event(), []
    (mount.dir / "model").mkdir()
    write_file(mount.dir / "model" / "model.safetensors", shard({"t0": random_bytes(1, 120_000)}))
    write_file(mount.dir / "kept.bin", random_bytes(5, 5 * MIB))
    writers = [Writer(mount, number, stop) for number in range(1, WRITERS + 1)]
    threads = writers + [threading.Thread(target=put_tensors, args=(mount, stop, problems), daemon=True)]
    for thread in threads:
        thread.start()
    made, deadline = 0, time.monotonic() + seconds
    try:
        wait_for(lambda: all(writer.version > 2 or writer.problem for writer in writers), 60, "the first versions")
        while time.monotonic() < deadline or made < 2:
            before = [writer.version for writer in writers]
            to = backup.dir if made % 2 == 0 else backup.base / "backup.tar"
            backup.make(to=to)
            after = [writer.version for writer in writers]
            made += 1
            store = backup.dir
            if to != backup.dir:
                store = backup.base / "extracted"
                store.mkdir()
                subprocess.run(["tar", "-xf", to, "-C", store], check=True)
            with backup.restored(store) as restored:
                check_tree(restored, before, after)
            if store != backup.dir:
                shutil.rmtree(store)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert problems == [] and [writer.problem for writer in writers] == [None] * WRITERS
    return made


def check_tree(restored, before, after):
    """It is a state of the tree: each file whole, and no later rename without an earlier one."""
    assert read_file(restored / "kept.bin") == random_bytes(5, 5 * MIB)
    for number in range(1, WRITERS + 1):
        directory = restored / f"writer-{number}"
        first, second = (check_whole(read_file(directory / name)) for name in ("first", "second"))
        assert first - second in (0, 1), (first, second)
        assert before[number - 1] - 1 <= second and first <= after[number - 1]
        for path in directory.glob("many-[0-9]"):
            assert first - 7 <= check_whole(read_file(path)) <= first


def test_under_load(backup):
    """Beside writers, removals, seals, tensors and repacks: a state that was, in both forms, clean by fsck."""
    assert back_up_under_load(backup, SECONDS) >= 2


@pytest.mark.endurance
@pytest.mark.long
def test_under_load_for_long(backup):
    """The same for a minute or more."""
    assert back_up_under_load(backup, LONG_SECONDS) >= 4


def test_removed_while_it_is_copied(backup):
    """What is removed while a backup runs is in the backup, and its space comes back afterwards."""
    mount = backup.mount
    for number in range(6):
        write_file(mount.dir / str(number), random_bytes(number, 4 * MIB))
    mount.wait_sealed()
    expected = tree_hashes(mount.dir)
    reader = subprocess.Popen([mount.weightfs, "backup", mount.store, "-"], stdout=subprocess.PIPE)
    head = reader.stdout.read(512 * 260)  # behind the directories: the snapshot is taken
    assert len(head) == 512 * 260 and reader.poll() is None
    for number in range(6):
        os.unlink(mount.dir / str(number))
    time.sleep(1.5)
    assert mount.disk() > 24 * MIB, "nothing was given back while the backup runs"
    backup.dir.mkdir()
    with open(backup.base / "backup.tar", "wb") as out:
        out.write(head)
        shutil.copyfileobj(reader.stdout, out)
    assert reader.wait() == 0
    subprocess.run(["tar", "-xf", backup.base / "backup.tar", "-C", backup.dir], check=True)
    with backup.restored() as restored:
        assert tree_hashes(restored) == expected
    mount.wait_disk(2 * MIB)


# ---- when it goes wrong ----

@pytest.mark.parametrize("rounds", [4, pytest.param(30, marks=[pytest.mark.long, pytest.mark.endurance])])
def test_killed_at_any_moment(backup, rounds):
    """Killed while it copies: what was there before is whole, and the next run completes it."""
    mount, generator = backup.mount, random.Random(3)
    fill(mount.dir / "d")
    mount.wait_sealed()
    backup.make()
    states = [tree_hashes(mount.dir)]
    killed = finished = 0
    for round_ in range(rounds):
        fill_more(mount.dir / f"more-{round_}", round_)
        shutil.rmtree(mount.dir / f"more-{round_ - 2}", ignore_errors=True)
        states.append(tree_hashes(mount.dir))
        process = subprocess.Popen([mount.weightfs, "backup", mount.store, backup.dir], stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        time.sleep(generator.random() * 0.05)
        process.kill()
        if process.wait() == 0:
            finished += 1
        else:
            killed += 1
        if not (backup.dir / "weightfs.db").exists():
            mount.run("backup", "--finish", backup.dir)
        backup.assert_clean()
        with backup.restored() as restored:
            assert tree_hashes(restored) in states
    assert killed > 1, (killed, finished)
    backup.make()
    assert sorted(os.listdir(backup.dir)) == ["data", "lock", "weightfs.db"]
    with backup.restored() as restored:
        assert tree_hashes(restored) == states[-1]


KILLER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>

static atomic_int calls;

static void count(void)
{
	const char *at = getenv("KILL_AT");

	if (at && atomic_fetch_add(&calls, 1) + 1 == atoi(at))
		kill(getpid(), SIGKILL);
}

#define WATCH(name, params, args) \
	int name params { count(); return ((int (*) params)dlsym(RTLD_NEXT, #name)) args; }
WATCH(rename, (const char *a, const char *b), (a, b))
WATCH(renameat, (int a, const char *b, int c, const char *d), (a, b, c, d))
WATCH(unlink, (const char *a), (a))
WATCH(unlinkat, (int a, const char *b, int c), (a, b, c))
WATCH(mkdirat, (int a, const char *b, mode_t c), (a, b, c))
WATCH(fsync, (int a), (a))
WATCH(fdatasync, (int a), (a))
"""


@pytest.fixture
def killer(tmp_path):
    """A library that kills its process before the KILL_AT-th call that changes names or waits for the disk."""
    source, library = tmp_path / "killer.c", tmp_path / "killer.so"
    source.write_text(KILLER)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.mark.parametrize("stride", [STRIDE, pytest.param(1, marks=[pytest.mark.long, pytest.mark.endurance])])
def test_killed_before_every_step(backup, killer, stride):
    """Killed before each rename, removal and flush in turn: the old backup or, after --finish, the new one is whole."""
    mount = backup.mount
    for number in range(6):
        write_file(mount.dir / f"{number}.bin", random_bytes(number, 150_000))
    mount.wait_sealed()
    backup.make()
    old = tree_hashes(mount.dir)
    os.unlink(mount.dir / "0.bin")
    with open(mount.dir / "1.bin", "r+b") as f:
        f.write(b"changed")
    write_file(mount.dir / "6.bin", random_bytes(6, 150_000))
    new = tree_hashes(mount.dir)
    saved, seen = backup.base / "saved", set()
    shutil.copytree(backup.dir, saved)
    for at in range(1, 1000, stride):
        process = subprocess.run([mount.weightfs, "backup", mount.store, backup.dir], stdout=subprocess.DEVNULL,
                                 env={**os.environ, "LD_PRELOAD": str(killer), "KILL_AT": str(at),
                                      "ASAN_OPTIONS": "verify_asan_link_order=0"})
        whole = (backup.dir / "weightfs.db").exists()
        if not whole:
            assert "completed" in mount.run("backup", "--finish", backup.dir).stdout
        backup.assert_clean()
        with backup.restored() as restored:
            found = tree_hashes(restored)
        assert found in (old, new), at
        seen.add((whole, found == new))
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        shutil.rmtree(backup.dir)
        shutil.copytree(saved, backup.dir)
    assert process.returncode == 0 and {(True, False), (True, True)} <= seen
    assert stride > 1 or (False, True) in seen


def fill_more(directory, seed):
    directory.mkdir()
    for number in range(12):
        write_file(directory / f"{number}.bin", random_bytes(seed * 100 + number, 150_000))


def test_goes_on_where_it_was_killed(backup):
    """A run after one that was killed does not copy again what that one had copied."""
    mount = backup.mount
    for number in range(20):
        write_file(mount.dir / f"{number}.bin", random_bytes(number, 2 * MIB))
    mount.wait_sealed()
    process = subprocess.Popen([mount.weightfs, "backup", mount.store, backup.dir])
    incoming = backup.dir / "data.next"
    wait_for(lambda: len([path for path in incoming.rglob("*") if len(path.name) == 16]) > 2 or process.poll() == 0, 60,
             "three files")
    process.kill()
    if process.wait() == 0:
        pytest.skip("the disk is too fast for this test")
    had = len([path for path in incoming.rglob("*") if len(path.name) == 16])
    done = backup.make()
    assert done["files_copied"] <= 20 - had and done["bytes_copied"] <= (20 - had) * 2 * MIB
    expected = tree_hashes(mount.dir)
    with backup.restored() as restored:
        assert tree_hashes(restored) == expected


@pytest.mark.parametrize("moved", [0, 1, 3])
def test_interrupted_in_its_last_step(backup, moved, tmp_path):
    """From the last step on, a mount is refused with what to do, and --finish needs nothing but the directory."""
    mount = backup.mount
    for number in range(4):
        write_file(mount.dir / f"{number}.bin", random_bytes(number, MIB))
    mount.wait_sealed()
    backup.make()
    os.rename(backup.dir / "weightfs.db", backup.dir / "weightfs.db.next")
    write_file(backup.dir / "weightfs.db-wal", b"of the old one")
    for path in sorted(data_files(backup.dir))[moved:]:
        (backup.dir / "data.next" / path.parent.name).mkdir(parents=True, exist_ok=True)
        os.rename(path, backup.dir / "data.next" / path.parent.name / path.name)
    (backup.dir / "data" / "fe").mkdir()
    write_file(backup.dir / "data" / "fe" / "00000000000000fe", b"gone in the new one")
    refused = mount.run("mount", backup.dir, tmp_path, check=False)
    assert refused.returncode == 1 and "backup --finish" in refused.stderr
    assert "completed" in mount.run("backup", "--finish", backup.dir).stdout
    assert "nothing to complete" in mount.run("backup", "--finish", backup.dir).stdout
    assert sorted(os.listdir(backup.dir)) == ["data", "lock", "weightfs.db"]
    expected = tree_hashes(mount.dir)
    with backup.restored() as restored:
        assert tree_hashes(restored) == expected


@pytest.mark.root_only
def test_no_room(backup, tmp_path):
    """A backup that does not fit fails with the reason, leaves what was there and no rest of itself."""
    mount = backup.mount
    write_file(mount.dir / "first.bin", random_bytes(1, 20 * MIB))
    mount.wait_sealed()
    before = tree_hashes(mount.dir)
    with small_disk("ext4", tmp_path, 64 * MIB) as disk:
        backup.dir = disk / "backup"
        backup.make()
        size = disk_blocks(backup.dir)
        for number in range(4):
            write_file(mount.dir / f"{number}.bin", random_bytes(10 + number, 20 * MIB))
        refused = backup.run(check=False)
        assert refused.returncode == 1 and "No space left" in refused.stderr
        assert disk_blocks(backup.dir) <= size + 16384
        archive = backup.run(to=disk / "backup.tar", check=False)
        assert archive.returncode == 1 and "No space left" in archive.stderr
        assert sorted(os.listdir(disk)) == ["backup", "lost+found"]
        with backup.restored() as restored:
            assert tree_hashes(restored) == before


@pytest.mark.root_only
def test_store_on_a_full_disk(unmounted, tmp_path):
    """Where the store's disk is nearly full, a backup does not keep space from being given back."""
    with small_disk("ext4", tmp_path, 112 * MIB) as disk, contextlib.ExitStack() as end:
        unmounted.store = disk / "store"
        end.callback(unmounted.end)
        mount = unmounted.mount()
        write_file(mount.dir / "a.bin", random_bytes(1, 16 * MIB))
        write_file(mount.dir / "b.bin", random_bytes(2, 16 * MIB))
        mount.wait_sealed()
        backup = Backup(mount, tmp_path)
        reader = subprocess.Popen([mount.weightfs, "backup", mount.store, "-"], stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE)
        head = reader.stdout.read(512 * 260)
        os.unlink(mount.dir / "a.bin")
        mount.wait_disk(36 * MIB)  # with the reserve
        with open(tmp_path / "backup.tar", "wb") as out:
            out.write(head)
            shutil.copyfileobj(reader.stdout, out)
        assert reader.wait() == 0, reader.stderr.read()
        backup.dir.mkdir()
        subprocess.run(["tar", "-xf", tmp_path / "backup.tar", "-C", backup.dir], check=True)
        with backup.restored() as restored:
            assert os.listdir(restored) == ["b.bin"]


def test_interrupted_archive(backup):
    """Ctrl-C takes the half archive away; what was there under its name stays. A reader that goes is an error."""
    mount = backup.mount
    for number in range(10):
        write_file(mount.dir / f"{number}.bin", random_bytes(number, 2 * MIB))
    mount.wait_sealed()
    archive = backup.base / "backup.tar"
    write_file(archive, b"old")
    names = sorted(os.listdir(backup.base))
    process = subprocess.Popen([mount.weightfs, "backup", mount.store, archive], stdout=subprocess.DEVNULL)
    wait_for(lambda: process.poll() is not None or list(backup.base.glob(".weightfs-backup-*/archive")), 60, "its file")
    process.send_signal(signal.SIGINT)
    if process.wait() != 0:
        assert read_file(archive) == b"old"
    assert sorted(os.listdir(backup.base)) == names
    process = subprocess.Popen([mount.weightfs, "backup", mount.store, "-"], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.wait() == 1 and b"Broken pipe" in process.stderr.read()


def test_only_the_owner_reads_it(backup):
    """Whatever the umask: directories are 0700, files 0600, in every form."""
    mount = backup.mount
    fill(mount.dir / "d")
    old = os.umask(0)
    try:
        backup.make()
        backup.make(to=backup.base / "backup.tar")
    finally:
        os.umask(old)
    for path in [backup.dir, *backup.dir.rglob("*")]:
        assert path.lstat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    assert (backup.base / "backup.tar").stat().st_mode & 0o777 == 0o600
