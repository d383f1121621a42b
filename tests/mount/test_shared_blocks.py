"""Stores on disks whose files can share blocks: a duplicate keeps its whole data file and costs no space.

Needs root, for loop devices, and so runs with passthrough.
"""

import contextlib
import functools
import os
import sqlite3
import subprocess
import threading
import time

import pytest

from support.disks import small_disk, used
from support.files import MIB, errno_of, random_bytes, read_file, write_file
from support.mounts import data_path, wait_for
from support.shards import shard

TENSOR = MIB + MIB // 2 + 24  # no multiple of a block
NAMES = "abcdefgh"
SIZE = len(NAMES) * TENSOR

pytestmark = pytest.mark.root_only


@contextlib.contextmanager
def mounted_on(kind, mount, base, *options, size=0):
    """A mount of a store on a disk of its own; Mount.disk_path is where that disk is mounted."""
    with small_disk(kind, base, size) as path:
        mount.store = path / "store"
        mount.disk_path, mount.kind = path, kind
        try:
            yield mount.mount(*options)
        finally:
            mount.end()


on_each = pytest.mark.parametrize("sharing", ["xfs", "btrfs"], indirect=True)


@pytest.fixture
def sharing(request, tmp_path, unmounted):
    """A mount of a store on a disk that shares blocks."""
    with mounted_on(getattr(request, "param", "xfs"), unmounted, tmp_path) as mount:
        yield mount
        mount.end()
        mount.assert_clean()


@functools.cache
def model(changed="", seed=100, longer=None):
    """A shard of eight tensors; those in `changed` have other bytes."""
    tensors = {name: random_bytes(seed + n if name in changed else n, TENSOR) for n, name in enumerate(NAMES)}
    tensors["norm"] = random_bytes(50, 700)
    return shard(tensors | ({"extra": longer} if longer else {}))


def layout(mount, name):
    return mount.json("ls", mount.dir / name)["layout"]


def goes_directly(mount, path):
    """Can bytes of `path` be read while the driver is stopped?"""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    reader = threading.Thread(target=os.pread, args=(fd, 4096, SIZE // 2))
    try:
        with mount.stopped():
            reader.start()
            reader.join(1)
            return not reader.is_alive()
    finally:
        reader.join()
        os.close(fd)


def took_at_most(mount, before, limit):
    """Does the disk come down to `limit` bytes more than `before`? It frees what was given back in its own time."""
    wait_for(lambda: used(mount.disk_path) - before <= limit, 60, f"at most {limit:,} bytes more in use")
    return True


def save_both(mount):
    """A base and a fine-tune of it, sealed one after the other, that takes what it changed on the disk."""
    base, tuned = model(), model("c")
    write_file(mount.dir / "base.safetensors", base)
    mount.wait_sealed()
    before = used(mount.disk_path)
    write_file(mount.dir / "tuned.safetensors", tuned)
    mount.wait_sealed()
    assert took_at_most(mount, before, TENSOR + MIB)
    return base, tuned


@on_each
def test_whole_and_no_larger(sharing):
    """The fine-tune is whole, goes directly, and takes the space of what it changed; status counts it so."""
    base, tuned = save_both(sharing)
    assert layout(sharing, "base.safetensors") == "whole"
    assert layout(sharing, "tuned.safetensors") == "whole"
    status = sharing.status()
    assert SIZE - TENSOR - MIB < status["shared_bytes"] < SIZE - TENSOR
    assert status["copied_bytes"] < MIB // 4
    assert status["disk_bytes"] < SIZE + TENSOR + MIB
    for _ in range(2):
        assert read_file(sharing.dir / "base.safetensors") == base
        assert read_file(sharing.dir / "tuned.safetensors") == tuned
        assert goes_directly(sharing, sharing.dir / "tuned.safetensors")
        sharing.remount()
    sharing.umount()
    sharing.assert_clean()


@on_each
@pytest.mark.parametrize("first, second", [("base", "tuned"), ("tuned", "base")])
def test_removed(sharing, first, second):
    """Whichever goes first: the other stays right, whole, and takes what it alone would; then all comes back."""
    write_file(sharing.dir / "small", b"the directories and tables that any file needs" * 5000)
    sharing.wait_sealed()
    empty = used(sharing.disk_path)
    contents = dict(zip(("base", "tuned"), save_both(sharing)))
    os.unlink(sharing.dir / f"{first}.safetensors")
    sharing.wait_sealed()
    sharing.assert_clean()
    assert read_file(sharing.dir / f"{second}.safetensors") == contents[second]
    assert layout(sharing, f"{second}.safetensors") == "whole"
    wait_for(lambda: sharing.status()["shared_bytes"] == 0, 60, "every object where it is needed")
    # btrfs frees an extent when nothing of it is in use any more: the other's own tensor stays.
    assert took_at_most(sharing, empty, SIZE + 2 * MIB + (TENSOR if sharing.kind == "btrfs" else 0))
    sharing.remount()
    assert read_file(sharing.dir / f"{second}.safetensors") == contents[second]
    os.unlink(sharing.dir / f"{second}.safetensors")
    sharing.wait_sealed()
    wait_for(lambda: sharing.status()["data_files"] <= 1, 60, "the data files of both given back")
    assert took_at_most(sharing, empty, 2 * MIB)


def change(path, at, data):
    with open(path, "r+b", buffering=0) as f:
        f.seek(at)
        f.write(data)


@on_each
def test_rewritten_in_place(sharing):
    """Writing one of two files that share blocks changes no other, and what it does not change stays shared."""
    base, tuned = save_both(sharing)
    tuned_path, base_path = sharing.dir / "tuned.safetensors", sharing.dir / "base.safetensors"
    for path, content, other_path, other in ((tuned_path, tuned, base_path, base),
                                             (base_path, base, tuned_path, None)):
        other = other or read_file(other_path)
        change(path, len(content) - TENSOR // 2, b"changed")
        at = len(content) - TENSOR // 2
        expected = content[:at] + b"changed" + content[at + 7:]
        assert read_file(path) == expected
        assert read_file(other_path) == other
        sharing.wait_sealed()
        assert read_file(path) == expected
        assert read_file(other_path) == other
        sharing.assert_clean()
    assert layout(sharing, "tuned.safetensors") == layout(sharing, "base.safetensors") == "whole"
    sharing.remount()
    assert read_file(base_path)[-TENSOR // 2:][:7] == read_file(tuned_path)[-TENSOR // 2:][:7] == b"changed"


def test_clones_and_equal_files(sharing):
    """A copy and a file saved again share the fine-tune's content, whole; the copy outlives it, or is written."""
    _, tuned = save_both(sharing)
    subprocess.run(["cp", sharing.dir / "tuned.safetensors", sharing.dir / "copy.safetensors"], check=True)
    write_file(sharing.dir / "again.safetensors", tuned)
    status = sharing.wait_sealed()
    assert status["manifests"] == 2
    assert status["data_files"] == 2
    os.unlink(sharing.dir / "tuned.safetensors")
    os.unlink(sharing.dir / "base.safetensors")
    sharing.wait_sealed()
    assert layout(sharing, "copy.safetensors") == "whole"
    with open(sharing.dir / "copy.safetensors", "rb") as reader:
        errno_of(change, sharing.dir / "again.safetensors", 3 * TENSOR, b"changed")
        assert reader.read() == tuned
    change(sharing.dir / "again.safetensors", 3 * TENSOR, b"changed")
    sharing.wait_sealed()
    assert read_file(sharing.dir / "copy.safetensors") == tuned
    assert read_file(sharing.dir / "again.safetensors") == tuned[:3 * TENSOR] + b"changed" + tuned[3 * TENSOR + 7:]


def test_saved_over_itself(sharing):
    """A checkpoint that replaces its predecessor by rename, again and again, takes no more than one."""
    for step in range(4):
        content = model("ab", seed=100 + 10 * step)
        write_file(sharing.dir / ".tmp", content)
        os.rename(sharing.dir / ".tmp", sharing.dir / "model.safetensors")
        sharing.wait_sealed()
        assert layout(sharing, "model.safetensors") == "whole"
        assert read_file(sharing.dir / "model.safetensors") == content
    sharing.wait_sealed()
    wait_for(lambda: sharing.status()["data_files"] == 1, 60, "the data files of the others given back")
    assert sharing.status()["shared_bytes"] == sharing.status()["copied_bytes"] == 0


def test_other_offsets(tmp_path, unmounted):
    """A header of another length: its tensors cannot share blocks, and are punched out as elsewhere."""
    with mounted_on("xfs", unmounted, tmp_path) as mount:
        save_both(mount)
        moved = model("d", longer=b"12345678")
        before = used(mount.disk_path)
        write_file(mount.dir / "moved.safetensors", moved)
        mount.wait_sealed()
        assert layout(mount, "moved.safetensors") == "composed"
        assert took_at_most(mount, before, TENSOR + MIB)
        assert read_file(mount.dir / "moved.safetensors") == moved


@on_each
def test_equal_tensors_in_one_file(sharing):
    """Tensors of one file that are equal share blocks where their places allow it."""
    tensors = {name: random_bytes(7, 2 * MIB) for name in NAMES}
    before = used(sharing.disk_path)
    write_file(sharing.dir / "tied.safetensors", shard(tensors))
    sharing.wait_sealed()
    assert layout(sharing, "tied.safetensors") == "whole"
    assert took_at_most(sharing, before, 3 * MIB)
    assert read_file(sharing.dir / "tied.safetensors") == shard(tensors)


def test_killed(sharing):
    """kill -9 while files are sealed: all of it is there, sealed in the end, and shared."""
    contents = {"base": model(), "tuned": model("c"), "other": model("fg")}
    for name, content in contents.items():
        write_file(sharing.dir / f"{name}.safetensors", content)
    for delay in (0.3, 0.33, 0.37, 0.42):
        time.sleep(delay)
        sharing.kill()
        sharing.mount()
    sharing.wait_sealed()
    for name, content in contents.items():
        assert read_file(sharing.dir / f"{name}.safetensors") == content
        assert layout(sharing, f"{name}.safetensors") == "whole"
    assert sharing.status()["disk_bytes"] < SIZE + 3 * TENSOR + MIB


def whole_copy(store):
    """The path of the one data file that is a whole copy."""
    with sqlite3.connect(store / "weightfs.db") as db:
        (number,) = db.execute("SELECT whole FROM manifest WHERE whole IS NOT NULL").fetchone()
    db.close()
    return data_path(store, number)


@pytest.mark.leaves_damage
def test_damage_is_found(tmp_path, unmounted):
    """A byte of the whole copy that is wrong, a copy that is cut short or gone: fsck names it and the file."""
    with mounted_on("xfs", unmounted, tmp_path) as mount:
        save_both(mount)
        mount.umount()
        copy = whole_copy(mount.store)
        for damage, kind in ((lambda: change(copy, TENSOR // 2, b"wrong"), "whole-copy-digest"),
                             (lambda: os.truncate(copy, SIZE // 2), "whole-copy-size"),
                             (lambda: os.unlink(copy), "data-file-missing")):
            damage()
            findings = mount.fsck()["findings"]
            assert kind in {f["kind"] for f in findings}, findings
            assert any("tuned.safetensors" in f["text"] for f in findings), findings


def test_limit_counts_shared_blocks_once(tmp_path, unmounted):
    """With -o max_size a fine-tune of which nearly all is shared does not use up the limit twice."""
    with mounted_on("xfs", unmounted, tmp_path, f"max_size={3 * SIZE + 4 * MIB}") as mount:
        save_both(mount)
        for step in range(3):
            write_file(mount.dir / f"more-{step}.safetensors", model("h", seed=200 + 10 * step))
            mount.wait_sealed()
        assert mount.status()["disk_bytes"] < SIZE + 5 * TENSOR


def test_disk_that_does_not_share(tmp_path, unmounted):
    """Elsewhere all is as it was: the duplicate's range is punched out, and the file composed."""
    with mounted_on("ext4", unmounted, tmp_path, size=128 * MIB) as mount:
        base, tuned = save_both(mount)
        assert layout(mount, "tuned.safetensors") == "composed"
        assert read_file(mount.dir / "tuned.safetensors") == tuned
        assert not goes_directly(mount, mount.dir / "tuned.safetensors")
        assert goes_directly(mount, mount.dir / "base.safetensors")
        assert read_file(mount.dir / "base.safetensors") == base
        mount.end()
        mount.assert_clean()
