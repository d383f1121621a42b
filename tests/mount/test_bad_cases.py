"""What goes wrong around a store: a clear error each time, and nothing lost."""

import errno
import os
import pathlib
import shutil
import subprocess
import tempfile
import threading
import time

import pytest

from support import shards
from support.files import MIB, errno_of, in_child, link_fd, random_bytes, read_file, tree_hashes, write_file
from support.mounts import disk_blocks, wait_for

LIMIT_MIB = 24


def free(path):
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


# ---- a limit ----

@pytest.fixture
def limited(unmounted):
    return unmounted.mount(f"max_size={LIMIT_MIB}MiB")


def test_limit(limited):
    """max_size: ENOSPC for the writer who passes it, df says so, and removing makes room."""
    kept = random_bytes(1, 10 * MIB)
    write_file(limited.dir / "kept.bin", kept)
    limited.wait_sealed()
    assert os.statvfs(limited.dir).f_blocks * os.statvfs(limited.dir).f_frsize == LIMIT_MIB * MIB
    with pytest.raises(OSError) as caught:
        write_file(limited.dir / "much.bin", random_bytes(2, 40 * MIB))
    assert caught.value.errno == errno.ENOSPC
    assert free(limited.dir) < 2 * MIB
    assert disk_blocks(limited.store / "data") <= LIMIT_MIB * MIB
    assert read_file(limited.dir / "kept.bin") == kept
    assert "max_size" in limited.log()
    os.unlink(limited.dir / "much.bin")
    limited.wait_sealed()
    write_file(limited.dir / "more.bin", random_bytes(3, 8 * MIB))
    limited.remount()
    assert read_file(limited.dir / "kept.bin") == kept
    assert read_file(limited.dir / "more.bin") == random_bytes(3, 8 * MIB)


def test_limit_counts_what_is_shared_once(limited):
    """Copies inside the mount and sealed duplicates take nothing of the limit."""
    write_file(limited.dir / "a.bin", random_bytes(1, 10 * MIB))
    limited.wait_sealed()
    for number in range(5):
        subprocess.run(["cp", limited.dir / "a.bin", limited.dir / f"copy-{number}.bin"], check=True)
        write_file(limited.dir / f"again-{number}.bin", random_bytes(1, 10 * MIB))
        limited.wait_sealed()
    hashes = tree_hashes(limited.dir)
    assert len(hashes) == 11
    assert set(hashes.values()) == {hashes["a.bin"]}


def test_limit_that_is_passed_already(unmounted):
    """A limit below what is there: reading and removing work, writing does not."""
    unmounted.mount()
    write_file(unmounted.dir / "a.bin", random_bytes(1, 10 * MIB))
    write_file(unmounted.dir / "b.bin", random_bytes(2, 10 * MIB))
    unmounted.umount()
    unmounted.mount("max_size=5MB")
    assert read_file(unmounted.dir / "a.bin") == random_bytes(1, 10 * MIB)
    assert errno_of(write_file, unmounted.dir / "c.bin", b"more") == errno.ENOSPC
    assert errno_of(os.mkdir, unmounted.dir / "d") == errno.ENOSPC
    assert free(unmounted.dir) == 0
    os.truncate(unmounted.dir / "b.bin", 0)
    os.rename(unmounted.dir / "a.bin", unmounted.dir / "renamed.bin")
    os.unlink(unmounted.dir / "renamed.bin")
    unmounted.wait_sealed()
    write_file(unmounted.dir / "c.bin", b"more")
    assert sorted(os.listdir(unmounted.dir)) == ["b.bin", "c.bin"]


@pytest.mark.parametrize("value", ["", "0", "much", "5XB", "-1"])
def test_limit_that_is_none(unmounted, value):
    done = unmounted.run("mount", unmounted.store, unmounted.dir, "-o", f"max_size={value}", check=False)
    assert done.returncode == 2
    assert "max_size" in done.stderr and "500GB" in done.stderr


def test_model_saved_past_the_limit(limited):
    """A checkpoint that does not fit: its writer is told, the one before it stays whole and can be loaded."""
    safetensors = pytest.importorskip("safetensors.numpy")
    numpy = pytest.importorskip("numpy")

    def tensors(seed):
        source = numpy.random.default_rng(seed)
        return {f"layer.{i}": source.standard_normal(MIB // 4, numpy.float32) for i in range(10)}

    for name in ("checkpoint-1", "checkpoint-2"):
        (limited.dir / name).mkdir()
    safetensors.save_file(tensors(1), limited.dir / "checkpoint-1" / "model.safetensors")
    limited.wait_sealed()
    first = read_file(limited.dir / "checkpoint-1" / "model.safetensors")
    with pytest.raises(Exception, match="(?i)no space|os error 28|i/o error"):
        safetensors.save_file({**tensors(2), **{f"b{k}": v for k, v in tensors(3).items()}},
                              limited.dir / "checkpoint-2" / "model.safetensors")
    assert read_file(limited.dir / "checkpoint-1" / "model.safetensors") == first
    shutil.rmtree(limited.dir / "checkpoint-2")
    limited.wait_sealed()
    (limited.dir / "checkpoint-2").mkdir()
    safetensors.save_file(tensors(2), limited.dir / "checkpoint-2" / "model.safetensors")
    limited.remount()
    for seed, name in ((1, "checkpoint-1"), (2, "checkpoint-2")):
        loaded = safetensors.load_file(limited.dir / name / "model.safetensors")
        assert all(numpy.array_equal(loaded[key], value) for key, value in tensors(seed).items())


# ---- the place of the store ----

def test_store_removed(unmounted):
    """Who removes the store under a mount is told so by every writer; the mount ends in order."""
    unmounted.mount()
    write_file(unmounted.dir / "a.bin", random_bytes(1, MIB))
    handle = os.open(unmounted.dir / "open.bin", os.O_WRONLY | os.O_CREAT)
    log = os.open(unmounted.store / "weightfs.log", os.O_RDONLY)
    shutil.rmtree(unmounted.store)
    assert errno_of(write_file, unmounted.dir / "new.bin", b"x") == errno.EIO
    names = (unmounted.dir / f"d{number}" for number in range(10_000))
    wait_for(lambda: errno_of(os.mkdir, next(names)) == errno.EIO, 60, "EIO for mkdir")
    assert errno_of(os.rename, unmounted.dir / "a.bin", unmounted.dir / "b.bin") == errno.EIO
    # With passthrough it is close(2) that knows.
    assert errno.EIO in (errno_of(os.write, handle, b"x"), errno_of(os.close, handle))
    assert "was removed while it is mounted" in os.read(log, 1 << 16).decode()
    os.close(log)
    unmounted.umount()
    assert not unmounted.store.exists()


@pytest.fixture
def read_only_place(tmp_path):
    """A function that makes a directory's parent read-only, as a disk that was mounted so."""
    place = tmp_path / "place"
    place.mkdir()
    subprocess.run(["mount", "--bind", place, place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.root_only
def test_store_on_a_read_only_disk(read_only_place, unmounted, tmp_path):
    """Refused with the way out; with -o ro it is served, to several mounts at once, and nothing is written."""
    unmounted.store = read_only_place / "store"
    unmounted.mount()
    write_file(unmounted.dir / "a.bin", random_bytes(1, MIB))
    write_file(unmounted.dir / "a.safetensors", shards.valid())
    expected = tree_hashes(unmounted.dir)
    unmounted.umount()
    before = tree_hashes(unmounted.store)
    subprocess.run(["mount", "-o", "remount,bind,ro", read_only_place], check=True)
    refused = unmounted.run("mount", unmounted.store, unmounted.dir, check=False)
    assert refused.returncode == 1
    assert "read-only" in refused.stderr and "-o ro" in refused.stderr
    other = tmp_path / "other"
    other.mkdir()
    for directory in (unmounted.dir, other):
        unmounted.run("mount", unmounted.store, directory, "-o", "ro")
    try:
        for directory in (unmounted.dir, other):
            assert tree_hashes(directory) == expected
            assert errno_of(write_file, directory / "b", b"x") == errno.EROFS
        status = unmounted.status()
        assert (status["mounted"], status["dirty"]) == (True, 0)
    finally:
        for directory in (unmounted.dir, other):
            unmounted.run("umount", directory)
    assert tree_hashes(unmounted.store) == before
    missing = unmounted.run("mount", read_only_place / "none", unmounted.dir, "-o", "ro", check=False)
    assert missing.returncode == 1 and "no such store" in missing.stderr


@pytest.mark.root_only
def test_two_mounts_of_a_store(mount, tmp_path):
    """A second mount of a store that is mounted is refused, to write and to read, and names the first."""
    other = tmp_path / "other"
    other.mkdir()
    for options in ((), ("-o", "ro")):
        done = mount.run("mount", mount.store, other, *options, check=False)
        assert done.returncode == 1
        assert f"in use by process {mount.pid}" in done.stderr
    write_file(mount.dir / "a", b"still served")
    assert read_file(mount.dir / "a") == b"still served"


def test_mount_over_a_directory_in_use(unmounted, tmp_path):
    """Files below the mount point and programs that stand in it: mounted with a word, and all there afterwards."""
    write_file(unmounted.dir / "hidden.txt", b"below")
    sleeper = subprocess.Popen(["sleep", "60"], cwd=unmounted.dir)
    try:
        done = unmounted.run("mount", unmounted.store, unmounted.dir)
        assert "not empty" in done.stderr
        assert os.listdir(unmounted.dir) == []
        write_file(unmounted.dir / "above.txt", b"above")
        unmounted.run("umount", unmounted.dir)
    finally:
        sleeper.kill()
        sleeper.wait()
    assert read_file(unmounted.dir / "hidden.txt") == b"below"
    assert os.listdir(unmounted.dir) == ["hidden.txt"]
    os.unlink(unmounted.dir / "hidden.txt")
    unmounted.mount()
    assert read_file(unmounted.dir / "above.txt") == b"above"


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000], ids=["name", "path"])
def test_paths_that_are_too_long(unmounted, tmp_path, name):
    for arguments in ((tmp_path / name, unmounted.dir), (unmounted.store, tmp_path / name)):
        done = unmounted.run("mount", *arguments, check=False)
        assert done.returncode == 1
        assert "too long" in done.stderr
    assert not unmounted.mounted


@pytest.fixture
def his_directory(other_user):
    """A directory that the other user may write; pytest's own may be entered by root alone."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="weightfs-test-"))
    os.chown(path, other_user.pw_uid, other_user.pw_gid)
    yield path
    shutil.rmtree(path)


@pytest.mark.root_only
def test_permission_denied(unmounted, other_user, his_directory):
    """A store that a user may not enter, a mount point that he may not write, another user's mount."""
    program = shutil.copy(unmounted.weightfs, his_directory)
    theirs = his_directory / "theirs"
    theirs.mkdir()
    os.chmod(his_directory, 0o755)

    def mount_as_user(store, directory):
        done = subprocess.run([program, "mount", store, directory], user=other_user.pw_uid,
                              group=other_user.pw_gid, extra_groups=[], capture_output=True, text=True)
        assert done.returncode == 1
        return done.stderr

    unmounted.mount()
    write_file(unmounted.dir / "a", b"mine")
    unmounted.umount()
    text = mount_as_user(unmounted.store, theirs)
    assert "ermission denied" in text and str(unmounted.store) in text
    text = mount_as_user(his_directory / "store", theirs)
    assert "no write access to mountpoint" in text and str(theirs) in text
    assert not os.path.ismount(theirs)
    unmounted.run("mount", unmounted.store, theirs)
    try:
        assert read_file(theirs / "a") == b"mine"
        assert in_child(errno_of, os.listdir, theirs, user=other_user) == errno.EACCES
    finally:
        unmounted.run("umount", theirs)


# ---- the driver ----

def test_driver_stopped_and_continued(mount):
    """While the driver is stopped its callers wait; when it goes on, they do, and nothing was lost."""
    write_file(mount.dir / "a.bin", random_bytes(1, 4 * MIB))
    mount.wait_sealed()
    done = threading.Event()

    def work():
        write_file(mount.dir / "b.bin", random_bytes(2, 4 * MIB))
        os.rename(mount.dir / "b.bin", mount.dir / "c.bin")
        done.set()

    worker = threading.Thread(target=work)
    with mount.stopped():
        worker.start()
        time.sleep(1)
        assert not done.is_set()
    worker.join(30)
    assert done.is_set()
    mount.remount()
    assert read_file(mount.dir / "a.bin") == random_bytes(1, 4 * MIB)
    assert read_file(mount.dir / "c.bin") == random_bytes(2, 4 * MIB)


# ---- the disk below ----

@pytest.fixture
def simple_disk(tmp_path):
    """A file system that can neither punch holes nor make unnamed files: bindfs."""
    below, place = tmp_path / "below", tmp_path / "disk"
    below.mkdir()
    place.mkdir()
    subprocess.run(["bindfs", "--no-allow-other", below, place], check=True)
    yield place
    subprocess.run(["fusermount3", "-u", place], check=True)


def test_disk_without_hole_punching(simple_disk, unmounted):
    """It works, says what it cannot give back, and gives that back when the rest of the data file goes."""
    unmounted.store = simple_disk / "store"
    assert errno_of(os.open, simple_disk, os.O_TMPFILE | os.O_RDWR) != 0
    mount = unmounted.mount()
    first = {f"t{i}": random_bytes(i, MIB) for i in range(6)}
    second = {**first, "t3": random_bytes(99, MIB)}
    write_file(mount.dir / "a.safetensors", shards.shard(first))
    mount.wait_sealed()
    write_file(mount.dir / "b.safetensors", shards.shard(second))
    status = mount.wait_sealed()
    assert status["held_bytes"] > 4 * MIB
    assert status["stored_bytes"] < 8 * MIB
    assert "cannot punch holes" in mount.log()
    assert "cannot punch holes" in mount.run("status", mount.store).stdout
    expected = tree_hashes(mount.dir)
    fd = os.open(mount.dir, os.O_TMPFILE | os.O_RDWR)
    os.write(fd, b"unnamed at first")
    link_fd(fd, mount.dir / "named")
    os.close(fd)
    mount.remount()
    assert read_file(mount.dir / "named") == b"unnamed at first"
    assert {name: tree_hashes(mount.dir)[name] for name in expected} == expected
    os.unlink(mount.dir / "b.safetensors")
    wait_for(lambda: mount.wait_sealed()["held_bytes"] == 0, 60, "the space of what was removed")
    assert {"a.safetensors": expected["a.safetensors"]}.items() <= tree_hashes(mount.dir).items()
