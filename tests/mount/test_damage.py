"""Bytes that are not what was stored: never read as content, named, and put right."""

import errno
import faulthandler
import mmap
import os
import shutil
import signal
import sqlite3

import numpy
import pytest

from support.damage import PAGE, ask, flip, named, object_of, objects, pages_of, unreadable_pages, verify
from support.files import errno_of, in_child, random_bytes, read_file, write_file
from support.mounts import data_path, wait_for
from support.shards import shard, valid

TENSOR = 300_000
NAMES = "abcd"
EITHER_WAY = [[], pytest.param(["passthrough=off"], marks=[pytest.mark.long, pytest.mark.endurance])]


def tensors(changed=""):
    return {name: random_bytes(ord(name) + 1000 * (name in changed), TENSOR) for name in NAMES}


def header_of(content):
    return len(content) - len(NAMES) * TENSOR


def fill(mount):
    """Two models that share tensors, and other files; the second model is composed."""
    files = {"model.safetensors": shard(tensors()), "tuned.safetensors": shard(tensors("cd")),
             "opaque.bin": random_bytes(50, 400_000), "small.json": b'{"small": true}\n' * 20}
    for name, content in files.items():
        write_file(mount.dir / name, content)
        if name == "model.safetensors":
            mount.wait_sealed()
    mount.wait_sealed()
    return files


@pytest.fixture(params=EITHER_WAY, ids=["default", "off"])
def filled(unmounted, request):
    unmounted.mount(*request.param)
    unmounted.files = fill(unmounted)
    return unmounted


@pytest.fixture
def damaged(filled):
    """Tensor b, which both models have, is damaged, and that is known."""
    filled.victim = object_of(filled.store, "model.safetensors", 2)
    flip(filled.store, filled.victim)
    code, answer = verify(filled, filled.dir)
    assert (code, answer["remembered"]) == (1, True)
    assert named(answer) == {"/model.safetensors": {"b"}, "/tuned.safetensors": {"b"}}
    return filled


def assert_whole(mount, *left_out):
    """Every file is what was written, nothing is known to be damaged, and nothing is."""
    for name, content in mount.files.items():
        if name not in left_out:
            assert read_file(mount.dir / name) == content
    status = mount.status()
    assert (status["damaged"], status["damaged_objects"], status["reports"]) == (0, 0, [])
    assert verify(mount)[1]["damaged"] == []


def read_directly(path, offset, length):
    """pread with O_DIRECT, which the kernel hands on as it is."""
    area = mmap.mmap(-1, (length + PAGE - 1) // PAGE * PAGE)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        return bytes(area[:os.preadv(fd, [memoryview(area)[:length]], offset)])
    finally:
        os.close(fd)


# ---- what is read ----

@pytest.mark.leaves_damage
def test_only_the_damaged_tensor_is_unreadable(damaged):
    """EIO for each page with a byte of it, every other page is as it was, in every file that has it."""
    for name in ("model.safetensors", "tuned.safetensors"):
        content = damaged.files[name]
        begin = header_of(content) + TENSOR
        bad = pages_of(begin, begin + TENSOR)
        assert errno_of(read_file, damaged.dir / name) == errno.EIO
        assert unreadable_pages(damaged.dir / name, len(content)) == bad
        with open(damaged.dir / name, "rb", buffering=0) as f:
            for page in pages_of(0, len(content)) - bad:
                assert os.pread(f.fileno(), PAGE, page * PAGE) == content[page * PAGE:(page + 1) * PAGE]
        # Without the page cache, to the byte.
        assert read_directly(damaged.dir / name, begin - 1, 1) == content[begin - 1:begin]
        assert read_directly(damaged.dir / name, begin - 100, 5000) == content[begin - 100:begin]
        assert errno_of(read_directly, damaged.dir / name, begin, 1) == errno.EIO
        assert errno_of(read_directly, damaged.dir / name, begin + TENSOR - 1, 2) == errno.EIO
        end = begin + TENSOR
        assert read_directly(damaged.dir / name, end, 5000) == content[end:end + 5000]
    assert read_file(damaged.dir / "opaque.bin") == damaged.files["opaque.bin"]
    assert read_file(damaged.dir / "small.json") == damaged.files["small.json"]


@pytest.mark.leaves_damage
def test_mapped(damaged):
    """A mapping shows the rest; a page of the damaged tensor is SIGBUS."""
    content = damaged.files["model.safetensors"]
    begin = header_of(content) + TENSOR
    with open(damaged.dir / "model.safetensors", "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as area:
        assert area[:begin // PAGE * PAGE] == content[:begin // PAGE * PAGE]
        assert area[begin + TENSOR + PAGE:] == content[begin + TENSOR + PAGE:]
        pid = os.fork()
        if pid == 0:
            faulthandler.disable()
            area[begin + PAGE]
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGBUS


@pytest.mark.leaves_damage
def test_never_opened_directly(damaged):
    """Whatever the file was before: with damage in it, it is no whole file any more."""
    for name in ("model.safetensors", "tuned.safetensors"):
        assert damaged.json("ls", damaged.dir / name)["layout"] == "composed" or name == "model.safetensors"
        assert errno_of(read_file, damaged.dir / name) == errno.EIO


@pytest.mark.leaves_damage
def test_opened_before_it_was_known(filled):
    """Who has it open keeps it; who opens it then is not given the wrong bytes."""
    path = filled.dir / "model.safetensors"
    begin = header_of(filled.files["model.safetensors"]) + TENSOR
    flip(filled.store, object_of(filled.store, "model.safetensors", 2))
    with open(path, "rb") as before:
        os.pread(before.fileno(), 100, begin + 5 * PAGE)
        assert verify(filled)[0] == 1
        assert errno_of(read_file, path) == errno.EIO
    assert errno_of(read_file, path) == errno.EIO


@pytest.mark.leaves_damage
def test_views(damaged):
    """Other tensors are read by themselves, and in other shards; the damaged one in none."""
    root = damaged.dir
    for name in "acd":
        assert numpy.load(root / ".tensors" / f"{name}.npy").tobytes() == tensors()[name]
    assert errno_of(read_file, root / ".tensors" / "b.npy") == errno.EIO
    assert errno_of(read_file, root / ".tensors" / "b.safetensors") == errno.EIO
    shards = sorted((root / ".shards" / "350KB").glob("model-*.safetensors"))
    found = {path.name: errno_of(read_file, path) for path in shards}
    assert sorted(found.values()) == [0, 0, 0, errno.EIO], found


@pytest.mark.leaves_damage
def test_it_is_named(damaged):
    """status, its JSON and the extended attribute name file and tensor, also after a kill and another mount."""
    begin = header_of(damaged.files["model.safetensors"]) + TENSOR
    text = f"tensor b (number 1), {TENSOR} bytes at {begin}: they are not what was stored"

    def assert_named():
        status = damaged.status()
        assert (status["damaged"], status["damaged_objects"]) == (2, 1)
        for name in ("model.safetensors", "tuned.safetensors"):
            report = damaged.reports()["/" + name]
            assert (report["verdict"], report["reason"], report["detail"]) == ("damaged", "bytes-changed", text)
            assert os.getxattr(damaged.dir / name, "user.weightfs.error").decode() == f"bytes-changed: {text}"
            assert os.listxattr(damaged.dir / name) == ["user.weightfs.error"]
            assert errno_of(read_file, damaged.dir / name) == errno.EIO
        assert os.listxattr(damaged.dir / "opaque.bin") == []
        assert "DAMAGED" in damaged.run("status", damaged.store).stdout

    assert_named()
    assert "damaged: /model.safetensors: bytes-changed: tensor b" in damaged.log()
    damaged.kill()
    damaged.mount(*damaged.options)
    assert_named()
    damaged.remount()
    assert_named()


# ---- what is done with it ----

@pytest.mark.leaves_damage
def test_damage_is_not_copied_as_content(damaged, tmp_path):
    """Out of the mount a copy fails; inside, a clone has the same damage, and no copy has other bytes."""
    source = damaged.dir / "model.safetensors"
    assert errno_of(shutil.copyfile, source, tmp_path / "out") == errno.EIO
    clone = damaged.dir / "clone.safetensors"
    assert in_child(errno_of, shutil.copyfile, source, clone) in (0, errno.EIO)
    # What a failed cp leaves is the beginning; a clone is as damaged as its source.
    assert not clone.exists() or errno_of(read_file, clone) == errno.EIO or \
        damaged.files["model.safetensors"].startswith(read_file(clone))
    assert damaged.run("repack", damaged.dir / "tuned.safetensors", check=False).returncode == 1
    assert errno_of(read_file, damaged.dir / "tuned.safetensors") == errno.EIO


@pytest.mark.leaves_damage
def test_partial_write_is_refused(damaged):
    """Changing a part would make the rest new content: EIO, and the file is as it was."""
    content = damaged.files["model.safetensors"]

    def change():
        with open(damaged.dir / "model.safetensors", "r+b", buffering=0) as f:
            f.seek(10)
            f.write(b"x")

    assert errno_of(change) == errno.EIO
    begin = header_of(content) + TENSOR
    assert unreadable_pages(damaged.dir / "model.safetensors", len(content)) == pages_of(begin, begin + TENSOR)
    assert damaged.reports()["/model.safetensors"]["verdict"] == "damaged"


def test_removed_and_replaced(damaged):
    """A damaged file can be removed, and replaced; the mark goes with its last file."""
    (damaged.dir / "model.safetensors").unlink()
    assert damaged.status()["damaged"] == 1
    write_file(damaged.dir / "tuned.safetensors", valid())
    damaged.wait_sealed()
    wait_for(lambda: damaged.status()["damaged_objects"] == 0, 30, "the mark's end")
    assert_whole(damaged, "model.safetensors", "tuned.safetensors")


# ---- healed by saving again ----

@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("how", ["other-file", "same-file", "same-again"])
def test_saved_again(filled, known, how):
    """An equal tensor that is saved takes the place of the damaged one, in every file that has it."""
    flip(filled.store, object_of(filled.store, "model.safetensors", 2))
    if known:
        assert verify(filled)[0] == 1
    if how == "other-file":
        write_file(filled.dir / "new.safetensors", shard({"z": random_bytes(90, 1000), "b": tensors()["b"]}))
    elif how == "same-file":
        write_file(filled.dir / "copy.safetensors", filled.files["model.safetensors"])
    else:
        write_file(filled.dir / "model.safetensors", filled.files["model.safetensors"])
    filled.wait_sealed()
    assert "saved anew" in filled.log()
    assert_whole(filled)
    assert len(ask(filled.store, "SELECT id FROM object WHERE ordinal > 0")) == 0
    filled.remount()
    assert_whole(filled)


@pytest.mark.parametrize("name, place", [("model.safetensors", 0), ("opaque.bin", 0), ("small.json", 0),
                                         ("tuned.safetensors", 3)])
def test_every_kind_is_healed(filled, name, place):
    """Headers, small files in the database, opaque files, parts of composed ones."""
    filled.umount()
    flip(filled.store, object_of(filled.store, name, place))
    filled.mount(*filled.options)
    assert errno_of(read_file, filled.dir / name) in (0, errno.EIO)
    assert verify(filled)[0] == 1
    assert errno_of(read_file, filled.dir / name) == errno.EIO
    write_file(filled.dir / "again", filled.files[name])
    filled.wait_sealed()
    assert_whole(filled)


def test_healed_while_open(damaged):
    """Who has a damaged file open reads it once it is right again."""
    with open(damaged.dir / "tuned.safetensors", "rb", buffering=0) as f:
        content = damaged.files["tuned.safetensors"]
        begin = header_of(content) + TENSOR
        assert errno_of(os.pread, f.fileno(), 100, begin + PAGE) == errno.EIO
        write_file(damaged.dir / "new", damaged.files["model.safetensors"])
        wait_for(lambda: damaged.status()["dirty"] == 0, 30, "the new file to be sealed")
        assert os.pread(f.fileno(), TENSOR, begin) == content[begin:begin + TENSOR]
    assert_whole(damaged)


def test_a_whole_data_file_is_healed(filled):
    """All of a model is lost with its data file; saved again, it is whole again."""
    filled.umount()
    data_path(filled.store, object_of(filled.store, "model.safetensors", 1).data_file).unlink()
    filled.mount(*filled.options)
    assert errno_of(read_file, filled.dir / "model.safetensors") == errno.EIO
    code, answer = verify(filled)
    assert (code, {bad["reason"] for bad in answer["damaged"]}) == (1, {"bytes-missing"})
    write_file(filled.dir / "again.safetensors", filled.files["model.safetensors"])
    filled.wait_sealed()
    assert_whole(filled)
    assert filled.json("ls", filled.dir / "model.safetensors")["layout"] == "whole"


def test_small_files_need_no_mark(filled):
    """What the database has is compared with its digest at each open: wrong bytes are never read."""
    filled.umount()
    victim = object_of(filled.store, "small.json", 0)
    flip(filled.store, victim, 7)
    filled.mount(*filled.options)
    assert errno_of(read_file, filled.dir / "small.json") == errno.EIO
    write_file(filled.dir / "again", filled.files["small.json"])
    filled.wait_sealed()
    assert_whole(filled)


def test_right_again(filled):
    """Bytes that come back (a cable, a driver) are found right by the next verify."""
    victim = object_of(filled.store, "opaque.bin", 0)
    flip(filled.store, victim)
    assert verify(filled)[0] == 1
    assert errno_of(read_file, filled.dir / "opaque.bin") == errno.EIO
    flip(filled.store, victim)
    code, answer = verify(filled)
    assert (code, answer["sound_again"]) == (0, 1)
    assert_whole(filled)


# ---- found by reading ----

@pytest.mark.leaves_damage
def test_bytes_that_are_gone_are_noticed_by_a_reader(unmounted):
    """A read that the disk cannot answer is an error, named in the log, in status and by the attribute."""
    unmounted.mount("passthrough=off")
    files = fill(unmounted)
    victim = object_of(unmounted.store, "model.safetensors", 4)
    os.truncate(data_path(unmounted.store, victim.data_file), victim.offset + 1000)
    unmounted.remount()
    assert errno_of(read_file, unmounted.dir / "model.safetensors") == errno.EIO
    begin = header_of(files["model.safetensors"]) + 3 * TENSOR
    text = f"tensor d, {TENSOR} bytes at {begin}: they are not in the store any more"
    assert f"/model.safetensors: {text}" in unmounted.log()
    assert unmounted.reports()["/model.safetensors"]["reason"] == "bytes-missing"
    assert b"tensor d (number 3)" in os.getxattr(unmounted.dir / "model.safetensors", "user.weightfs.error")
    with open(unmounted.dir / "model.safetensors", "rb") as f:
        assert f.read(begin // PAGE * PAGE) == files["model.safetensors"][:begin // PAGE * PAGE]
    assert read_file(unmounted.dir / "tuned.safetensors") == files["tuned.safetensors"]


# ---- repaired ----

def repair(mount, source):
    mount.umount()
    code, answer = verify(mount, None, "--from", source)
    mount.mount(*mount.options)
    return code, answer


@pytest.fixture
def broken(filled):
    """One of each kind is damaged."""
    filled.umount()
    filled.victims = [object_of(filled.store, *where) for where in
                      [("model.safetensors", 2), ("tuned.safetensors", 3), ("opaque.bin", 0), ("small.json", 0)]]
    for victim in filled.victims:
        flip(filled.store, victim)
    filled.mount(*filled.options)
    assert verify(filled)[0] == 1
    return filled


def test_repaired_from_a_directory(broken, plain):
    """Plain copies of the files, anywhere below a directory."""
    for name, content in broken.files.items():
        (plain / "deep" / name).mkdir(parents=True)
        write_file(plain / "deep" / name / name, content)
    code, answer = repair(broken, plain)
    assert (code, answer["repaired"]) == (0, len(broken.victims))
    assert_whole(broken)


def test_repaired_by_equal_bytes_under_other_names(broken, plain):
    """Tensors of other names in other files, an array, a file of another name, among what is of equal length."""
    decoys = {name: random_bytes(n, TENSOR) for n, name in enumerate("abcd", 500)}
    write_file(plain / "model.safetensors", shard(decoys))
    write_file(plain / "opaque.bin", random_bytes(600, 400_000))
    write_file(plain / "other.safetensors", shard({"x": tensors()["b"]}))
    numpy.save(plain / "array.npy", numpy.frombuffer(tensors("c")["c"], dtype=numpy.uint8))
    write_file(plain / "unnamed", broken.files["opaque.bin"])
    (plain / "linked").symlink_to(plain / "unnamed")
    write_file(plain / "config", broken.files["small.json"])
    code, answer = repair(broken, plain)
    assert (code, answer["repaired"]) == (0, len(broken.victims))
    assert_whole(broken)


@pytest.mark.leaves_damage
def test_what_is_not_there_stays_damaged(broken, plain):
    """Only bytes with the digest count; the rest stays marked, and unreadable."""
    write_file(plain / "opaque.bin", broken.files["opaque.bin"])
    write_file(plain / "model.safetensors", shard({name: random_bytes(n, TENSOR) for n, name in enumerate("abcd", 500)}))
    write_file(plain / "small.json", b"x" * len(broken.files["small.json"]))
    code, answer = repair(broken, plain)
    assert (code, answer["repaired"], len(answer["damaged"])) == (1, 1, len(broken.victims))
    assert read_file(broken.dir / "opaque.bin") == broken.files["opaque.bin"]
    for name in ("model.safetensors", "tuned.safetensors", "small.json"):
        assert errno_of(read_file, broken.dir / name) == errno.EIO


@pytest.mark.leaves_damage
def test_mounted_store_is_not_repaired_from_outside(damaged, plain):
    """Refused with the ways out, before anything is read."""
    write_file(plain / "model.safetensors", damaged.files["model.safetensors"])
    done = damaged.run("verify", "--from", plain, damaged.dir, check=False)
    assert done.returncode == 2
    assert "unmount" in done.stderr and "save the tensors" in done.stderr


def test_repaired_store_keeps_no_old_bytes(broken, plain):
    """What was damaged is given back as space like all that is dead."""
    before = broken.status()["stored_bytes"]
    for name, content in broken.files.items():
        write_file(plain / name, content)
    assert repair(broken, plain)[0] == 0
    broken.wait_sealed()
    assert broken.status()["stored_bytes"] == before
    assert len(objects(broken.store)) == broken.status()["objects"]


def test_a_store_of_the_version_before(unmounted):
    """The mark's table comes with the next mount."""
    unmounted.mount()
    fill(unmounted)
    unmounted.umount()
    db = sqlite3.connect(unmounted.store / "weightfs.db")
    db.executescript("DROP TABLE damage; PRAGMA user_version = 4;")
    db.close()
    unmounted.mount()
    assert unmounted.status()["format_version"] >= 5
    assert verify(unmounted)[0] == 0
