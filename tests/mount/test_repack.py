"""`weightfs repack`: a composed file gets a whole copy, and nothing else changes."""

import errno
import fcntl
import functools
import mmap
import os
import shutil
import struct
import subprocess

import pytest

from support.disks import small_disk
from support.files import MIB, errno_of, in_child, random_bytes, read_file, write_file
from support.mounts import filled_data_files, wait_for
from support.shards import shard

TENSOR = MIB + 24  # no multiple of a block
NAMES = "abcdefgh"
SIZE = len(NAMES) * TENSOR
LARGE = 9 * MIB  # of these four take more than one step
STEP = struct.Struct("QQQII")  # struct wfs_ioc_repack: done, total, copied, state, reserved
IOC_REPACK = 2 << 30 | STEP.size << 16 | 0x57 << 8 | 1
MORE, DONE, NOTHING = 0, 1, 2


@functools.cache
def model(changed="", seed=100, size=TENSOR, names=NAMES):
    """A shard of tensors; those in `changed` have other bytes."""
    return shard({name: random_bytes(seed + n if name in changed else n, size) for n, name in enumerate(names)})


def layout(mount, name):
    return mount.json("ls", mount.dir / name)["layout"]


def save_both(mount, base, tuned):
    """Two files that share tensors; the second is composed."""
    for name, content in (("base.safetensors", base), ("tuned.safetensors", tuned)):
        write_file(mount.dir / name, content)
        mount.wait_sealed()
    assert layout(mount, "base.safetensors") == "whole"
    assert layout(mount, "tuned.safetensors") == "composed"
    return mount.dir / "base.safetensors", mount.dir / "tuned.safetensors"


@pytest.fixture
def both(unmounted, request):
    """A mounted store with a base and a fine-tune of it; on a disk that shares no blocks these are composed."""
    if errno_of(clone_here, unmounted.store.parent) == 0:
        pytest.skip("this disk shares blocks: there are no composed files of this kind; see test_shared_blocks")
    mount = unmounted.mount()
    how = getattr(request, "param", {})
    mount.base, mount.tuned = model(**how), model("c", **how)
    save_both(mount, mount.base, mount.tuned)
    return mount


def clone_here(directory):
    """FICLONE between two files there."""
    write_file(directory / "one", b"x" * 4096)
    write_file(directory / "two", b"")
    try:
        with open(directory / "one", "rb") as one, open(directory / "two", "r+b") as two:
            fcntl.ioctl(two, 0x40049409, one.fileno())
    finally:
        os.unlink(directory / "one")
        os.unlink(directory / "two")


def test_checkpoints_of_a_run_are_whole(mount):
    """What has only its header in common with the last checkpoint stays whole, on any disk: it is read directly."""
    contents = [model(NAMES, seed) for seed in (200, 300, 400)]
    for number, content in enumerate(contents):
        write_file(mount.dir / f"checkpoint-{number}.safetensors", content)
        mount.wait_sealed()
    before = mount.status()["stored_bytes"]
    for number, content in enumerate(contents):
        assert layout(mount, f"checkpoint-{number}.safetensors") == "whole"
        assert read_file(mount.dir / f"checkpoint-{number}.safetensors") == content
    write_file(mount.dir / "again.safetensors", contents[1])
    mount.wait_sealed()
    assert mount.status()["stored_bytes"] == before, "an equal file takes no space"
    for number in (1, 0):
        os.unlink(mount.dir / f"checkpoint-{number}.safetensors")
    mount.wait_sealed()
    mount.remount()
    assert read_file(mount.dir / "checkpoint-2.safetensors") == contents[2]
    assert read_file(mount.dir / "again.safetensors") == contents[1]


def step(fd):
    """One step, asked for as the command does: (bytes done, all, copied, state)."""
    buffer = bytearray(STEP.size)
    fcntl.ioctl(fd, IOC_REPACK, buffer)
    return STEP.unpack(buffer)[:4]


def finish(fd):
    """Every step that is left."""
    while step(fd)[3] == MORE:
        pass


def change(path, at, data):
    with open(path, "r+b", buffering=0) as f:
        f.seek(at)
        f.write(data)


# ---- what it does ----


def test_whole_and_the_same(both):
    """Whole afterwards, with the same bytes; the base stays as it was; what both have is stored twice, and status says so."""
    mount, path = both, both.dir / "tuned.safetensors"
    before = mount.wait_sealed()
    answer = mount.json("repack", path)
    assert answer["repacked"] == [{"path": str(path), "bytes": len(mount.tuned), "copied": len(mount.tuned)}]
    assert (answer["files"], answer["unchanged"], answer["errors"]) == (1, 0, [])
    for _ in range(2):
        assert layout(mount, "tuned.safetensors") == layout(mount, "base.safetensors") == "whole"
        assert read_file(path) == mount.tuned
        assert read_file(mount.dir / "base.safetensors") == mount.base
        mount.remount()
    after = mount.wait_sealed()
    assert after["objects"] == before["objects"] and after["stored_bytes"] == before["stored_bytes"]
    assert abs(after["copied_bytes"] - (SIZE - TENSOR)) < 2000  # and the header
    assert after["disk_bytes"] - before["disk_bytes"] < SIZE - TENSOR + MIB
    assert "stored twice" in mount.run("status", mount.dir).stdout
    done = mount.run("repack", path)
    assert "0 files repacked" in done.stdout
    mount.umount()
    mount.assert_clean()


@pytest.mark.parametrize("first, second", [("base", "tuned"), ("tuned", "base")])
def test_removed_afterwards(both, first, second):
    """When the other is removed, nothing is stored twice any more; when both are, nothing at all."""
    mount = both
    contents = {"base": mount.base, "tuned": mount.tuned}
    mount.run("repack", mount.dir / "tuned.safetensors")
    os.unlink(mount.dir / f"{first}.safetensors")
    wait_for(lambda: mount.status()["data_files"] == 1, 60, "one data file that is left")
    status = mount.wait_sealed()
    assert status["copied_bytes"] == 0
    assert status["disk_bytes"] < SIZE + 3 * MIB
    assert layout(mount, f"{second}.safetensors") == "whole"
    assert read_file(mount.dir / f"{second}.safetensors") == contents[second]
    mount.assert_clean()
    mount.remount()
    assert read_file(mount.dir / f"{second}.safetensors") == contents[second]
    os.unlink(mount.dir / f"{second}.safetensors")
    wait_for(lambda: mount.wait_sealed()["data_files"] == 0, 60, "every data file given back")


def test_nobody_else_has_it(both):
    """Composed only because of what was removed: its objects move, nothing is stored twice."""
    mount = both
    os.unlink(mount.dir / "base.safetensors")
    wait_for(lambda: mount.wait_sealed()["objects"] == len(NAMES) + 1, 60, "the base's own object given back")
    assert layout(mount, "tuned.safetensors") == "composed"
    mount.run("repack", mount.dir)
    status = mount.wait_sealed()
    assert (status["data_files"], status["copied_bytes"]) == (1, 0)
    assert layout(mount, "tuned.safetensors") == "whole"
    assert read_file(mount.dir / "tuned.safetensors") == mount.tuned


def test_readers_go_on(both):
    """A descriptor and a mapping from before read the same bytes during and after it, and after the removal."""
    mount, path = both, both.dir / "tuned.safetensors"
    with open(path, "rb", buffering=0) as reader, mmap.mmap(reader.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        assert mapping[:100] == mount.tuned[:100]
        mount.run("repack", path)
        assert reader.read() == mount.tuned
        os.unlink(mount.dir / "base.safetensors")
        mount.wait_sealed()
        assert read_file(path) == mount.tuned
        os.unlink(path)
        assert mapping[:] == mount.tuned
        reader.seek(0)
        assert reader.read() == mount.tuned


def test_written_afterwards(both):
    """Both files can be changed in place, the copies with them, and are right in every state."""
    mount = both
    mount.run("repack", mount.dir / "tuned.safetensors")
    expected = {"base.safetensors": mount.base, "tuned.safetensors": mount.tuned}
    for name in ("tuned.safetensors", "base.safetensors", "tuned.safetensors"):
        change(mount.dir / name, 5 * TENSOR, b"changed")
        expected[name] = expected[name][:5 * TENSOR] + b"changed" + expected[name][5 * TENSOR + 7:]
        for how in ("dirty", "sealed", "remounted"):
            mount.settle(how)
            assert all(read_file(mount.dir / each) == expected[each] for each in expected)
    mount.assert_clean()


def test_clones(both):
    """A copy that shares the content is whole with it, and outlives it."""
    mount = both
    subprocess.run(["cp", mount.dir / "tuned.safetensors", mount.dir / "copy.safetensors"], check=True)
    mount.run("repack", mount.dir / "copy.safetensors")
    assert layout(mount, "tuned.safetensors") == "whole"
    change(mount.dir / "tuned.safetensors", 0, mount.tuned[:4])
    change(mount.dir / "tuned.safetensors", 3 * TENSOR, b"changed")
    assert read_file(mount.dir / "copy.safetensors") == mount.tuned
    mount.wait_sealed()
    os.unlink(mount.dir / "tuned.safetensors")
    mount.remount()
    assert read_file(mount.dir / "copy.safetensors") == mount.tuned


def test_directory(both):
    """All regular files below it, links counted once, others left alone; what was written just now is waited for."""
    mount = both
    below = mount.dir / "run" / "checkpoint-1"
    below.mkdir(parents=True)
    (mount.dir / "config.json").write_text("{}")
    os.link(mount.dir / "tuned.safetensors", below / "linked.safetensors")
    os.symlink("../../tuned.safetensors", below / "symbolic.safetensors")
    os.mkfifo(below / "fifo")
    late = model("fg", seed=300)
    write_file(below / "late.safetensors", late)
    answer = mount.json("repack", mount.dir)
    assert answer["files"] == 5
    assert {os.path.basename(each["path"]) for each in answer["repacked"]} - {"tuned.safetensors"} <= {
        "linked.safetensors", "late.safetensors"}
    assert (len(answer["repacked"]), answer["errors"]) == (2, [])
    assert layout(mount, "tuned.safetensors") == layout(mount, "run/checkpoint-1/late.safetensors") == "whole"
    assert read_file(below / "late.safetensors") == late
    assert mount.json("repack", f"{mount.store}:/run")["unchanged"] == 2


# ---- what it refuses ----


def test_refusals(both):
    """What is written, not mounted, read-only, or no file of a mount: exit 1, and what to do."""
    mount, path = both, both.dir / "tuned.safetensors"
    with open(path, "r+b", buffering=0) as writer:
        writer.write(mount.tuned[:10])
        done = mount.run("repack", path, check=False)
        assert (done.returncode, "has it open for writing" in done.stderr) == (1, True), done.stderr
    mount.wait_sealed()
    assert mount.run("repack", check=False).returncode == 2
    assert mount.run("repack", "--wrong", path, check=False).returncode == 2
    done = mount.run("repack", mount.store.parent / "nothing", check=False)
    assert (done.returncode, "No such file" in done.stderr) == (1, True)
    mount.umount()
    done = mount.run("repack", f"{mount.store}:/tuned.safetensors", check=False)
    assert (done.returncode, "is not mounted" in done.stderr, "weightfs mount" in done.stderr) == (1, True, True)
    mount.mount("ro")
    done = mount.run("repack", path, check=False)
    assert (done.returncode, "without -o ro" in done.stderr) == (1, True), done.stderr
    answer = mount.json("repack", path, check=False)
    assert [each["path"] for each in answer["errors"]] == [str(path)]


def test_other_requests(both):
    """Any other ioctl is ENOTTY, of files and directories; isatty(3) is one."""
    with open(both.dir / "tuned.safetensors", "rb") as f:
        assert not f.isatty()
        assert errno_of(fcntl.ioctl, f, IOC_REPACK + 1) == errno.ENOTTY
    fd = os.open(both.dir, os.O_RDONLY)
    assert errno_of(step, fd) == errno.ENOTTY
    os.close(fd)


@pytest.mark.root_only
def test_other_users(unmounted, other_user):
    """Who only may read a file cannot have it copied; its owner can."""
    mount = unmounted.mount("allow_other")
    _, path = save_both(mount, model(), model("c"))
    path.chmod(0o644)
    root = os.open(mount.dir, os.O_RDONLY)

    def ask():
        return errno_of(step, os.open(path.name, os.O_RDONLY, dir_fd=root))

    assert in_child(ask, user=other_user) == errno.EPERM
    os.chown(path, other_user.pw_uid, other_user.pw_gid)
    assert in_child(ask, user=other_user) == 0
    os.close(root)


# ---- what comes between ----


with_large_files = pytest.mark.parametrize("both", [{"size": LARGE, "names": "abcd"}], indirect=True, ids=["large"])


@with_large_files
def test_stopped_in_the_middle(both):
    """Closed after the first step: the file is as it was, and the space comes back."""
    mount, large = both, both.dir / "tuned.safetensors"
    before = mount.wait_sealed()
    fd = os.open(large, os.O_RDONLY)
    done, total, copied, state = step(fd)
    assert (0 < done < total, copied, state) == (True, done, MORE)
    assert mount.status()["disk_bytes"] > before["disk_bytes"] + MIB
    os.close(fd)
    wait_for(lambda: mount.wait_sealed()["disk_bytes"] < before["disk_bytes"] + 2 * MIB, 60, "the space of the copy")
    assert layout(mount, "tuned.safetensors") == "composed"
    assert read_file(large) == mount.tuned


@with_large_files
def test_killed_in_the_middle(both):
    """kill -9 of the driver after the first step, and again right after the last one."""
    mount, large = both, both.dir / "tuned.safetensors"
    before = filled_data_files(mount.store)
    fd = os.open(large, os.O_RDONLY)
    assert step(fd)[3] == MORE
    mount.kill()
    assert errno_of(os.close, fd) in (0, errno.ENOTCONN)
    mount.mount()
    mount.wait_sealed()
    assert filled_data_files(mount.store) == before
    assert layout(mount, "tuned.safetensors") == "composed"
    assert read_file(large) == mount.tuned
    mount.run("repack", large)
    mount.kill()
    mount.mount()
    assert layout(mount, "tuned.safetensors") == "whole"
    assert read_file(large) == mount.tuned
    assert read_file(mount.dir / "base.safetensors") == mount.base


@pytest.mark.parametrize("how", [
    "written", "shared", *(pytest.param(how, marks=pytest.mark.long) for how in ("replaced", "removed", "repacked"))])
@with_large_files
def test_changed_in_the_middle(both, how):
    """The file is written, replaced, removed, repacked by another or copied between two steps."""
    mount, large = both, both.dir / "tuned.safetensors"
    fd = os.open(large, os.O_RDONLY)
    assert step(fd)[3] == MORE
    expected, wanted = mount.tuned, 0
    if how == "written":
        # With passthrough the open descriptor keeps the file in the driver: writing goes there, too.
        change(large, 100_000, b"changed")
        expected = mount.tuned[:100_000] + b"changed" + mount.tuned[100_007:]
        wanted = errno.ETXTBSY
    elif how == "replaced":
        expected = model("a", seed=700)
        write_file(mount.dir / "new", expected)
        os.rename(mount.dir / "new", large)
    elif how == "removed":
        os.unlink(large)
    elif how == "repacked":
        mount.run("repack", large)
        wanted = errno.ETXTBSY
    else:
        subprocess.run(["cp", large, mount.dir / "copy"], check=True)
    assert errno_of(finish, fd) == wanted
    os.close(fd)
    if how != "removed":
        assert read_file(large) == expected
    mount.wait_sealed()
    if how == "shared":
        assert layout(mount, "copy") == "whole"
        assert read_file(mount.dir / "copy") == mount.tuned
    assert read_file(mount.dir / "base.safetensors") == mount.base


# ---- on disks of their own ----


@pytest.mark.root_only
def test_full_disk(tmp_path, unmounted):
    """No room for the copy: ENOSPC, the file as it was, and nothing of the copy stays."""
    with small_disk("ext4", tmp_path, 112 * MIB) as path:
        unmounted.store = path / "store"
        try:
            mount = unmounted.mount()
            base, tuned = model(size=3 * MIB), model("c", size=3 * MIB)
            _, composed = save_both(mount, base, tuned)
            rest = os.statvfs(path)
            write_file(mount.dir / "filler", os.urandom(rest.f_bavail * rest.f_frsize - 16 * MIB))
            mount.wait_sealed()
            before = mount.status()
            done = mount.run("repack", composed, check=False)
            assert (done.returncode, "remove something" in done.stderr) == (1, True), done.stdout + done.stderr
            wait_for(lambda: mount.wait_sealed()["disk_bytes"] < before["disk_bytes"] + MIB, 60, "the copy's space")
            assert layout(mount, "tuned.safetensors") == "composed"
            assert read_file(composed) == tuned
            os.unlink(mount.dir / "filler")
            mount.run("repack", composed)
            assert layout(mount, "tuned.safetensors") == "whole"
            assert read_file(composed) == tuned
        finally:
            unmounted.end()
        unmounted.assert_clean()


@pytest.mark.root_only
def test_limit(unmounted):
    """At the limit of -o max_size the copy is refused like any other write."""
    mount = unmounted.mount(f"max_size={2 * SIZE + TENSOR}")
    tuned = model("c")
    _, path = save_both(mount, model(), tuned)
    done = mount.run("repack", path, check=False)
    if layout(mount, "tuned.safetensors") == "composed":
        assert (done.returncode, "No space" in done.stderr) == (1, True)
    assert read_file(path) == tuned


@pytest.mark.root_only
@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_store_moved_to_a_disk_that_shares(tmp_path, both, kind):
    """A composed file of a store that was copied from elsewhere: repacked, it shares blocks and costs no space."""
    both.umount()
    with small_disk(kind, tmp_path) as path:
        subprocess.run(["cp", "-r", "--sparse=always", both.store, path / "store"], check=True)
        both.store = path / "store"
        try:
            both.mount()
            before = both.status()["disk_bytes"]
            answer = both.json("repack", both.dir)
            assert answer["copied"] < MIB // 4 < TENSOR < answer["bytes"]
            status = both.wait_sealed()
            assert status["disk_bytes"] < before + MIB
            assert layout(both, "tuned.safetensors") == "whole"
            assert read_file(both.dir / "tuned.safetensors") == both.tuned
            os.unlink(both.dir / "base.safetensors")
            both.remount()
            assert read_file(both.dir / "tuned.safetensors") == both.tuned
        finally:
            both.end()
        both.assert_clean()
        shutil.rmtree(path / "store")
        both.store = tmp_path / "store"
