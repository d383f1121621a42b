"""Tensors written through .tensors: by every usual program, under every name, in every kind of directory.

What the shards have afterwards is read by Python's safetensors.
"""

import errno
import json
import os
import shutil
import subprocess

import pytest

np = pytest.importorskip("numpy")
safetensors_numpy = pytest.importorskip("safetensors.numpy")

from support import shards
from support.files import (KIB, MIB, RENAME_EXCHANGE, errno_of, in_child, read_file, renameat2, sha256, tree_hashes,
                           write_all, write_file)
from support.mounts import wait_for
from support.tensors import model, npy

LIMIT = "user.weightfs.max_shard_size"


def some(number, size=10, dtype="<f4"):
    return np.full(size, number, dtype)


def assert_model(directory, expected, variant=""):
    found = model(directory, variant)
    assert sorted(found) == sorted(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array), name


def inodes(directory):
    return {path.name: path.stat().st_ino for path in directory.iterdir()}


def reason(directory):
    return os.getxattr(directory / ".tensors", "user.weightfs.error").decode(errors="replace")


@pytest.fixture(params=["default", "passthrough=off"])
def directory(request, unmounted):
    """An empty directory of a mount, with the kernel's passthrough (where it is to be had) and without."""
    unmounted.mount(*([] if request.param == "default" else [request.param]))
    (unmounted.dir / "m").mkdir()
    return unmounted.dir / "m"


@pytest.fixture
def one(mount):
    """As above, by the usual options alone."""
    (mount.dir / "m").mkdir()
    return mount.dir / "m"


# ---- programs ----

PROGRAMS = {
    "cp": "cp {src}/*.npy {to}/",
    "cp-p": "cp -p {src}/*.npy {to}/",
    "rsync": "rsync -aI {src}/*.npy {to}/ && rsync -a {src}/*.npy {to}/",
    "rsync-inplace": "rsync -aI --inplace {src}/*.npy {to}/",
    "tar": "tar c -C {src} $(cd {src}; ls) | tar x -C {to}",
    "mv": "cp -r {src} {src}.2 && mv {src}.2/*.npy {to}/ && rmdir {src}.2",
    "dd": "for f in {src}/*.npy; do dd if=$f of={to}/${{f##*/}} bs=333 status=none || exit; done",
    "dd-notrunc": "for f in {src}/*.npy; do dd if=$f of={to}/${{f##*/}} bs=333 conv=notrunc status=none || exit; done",
    "cat": "for f in {src}/*.npy; do cat $f > {to}/${{f##*/}} || exit; done",
    "install": "install -m 644 {src}/*.npy {to}/",
    "append": "for f in {src}/*.npy; do head -c 500 $f > {to}/.t && tail -c +501 $f >> {to}/.t"
              " && mv {to}/.t {to}/${{f##*/}} || exit; done",
    "shutil": "python3 -c 'import shutil, sys; [shutil.copy2(f, sys.argv[1]) for f in sys.argv[2:]]' {to}/ {src}/*.npy",
}
IN_TURN = "for f in {src}/*.npy; do (head -c 500 $f 2>{to}/../complaint; tail -c +501 $f) > {to}/${{f##*/}} || exit; done"


def run_twice(directory, plain, script):
    """The script over nothing, then over what it made, with other bytes."""
    for seed in (0, 100):
        arrays = {f"n{number}": some(seed + number, 1000 + number) for number in range(12)}
        for name, array in arrays.items():
            np.save(plain / f"{name}.npy", array)
        done = subprocess.run(["sh", "-c", script.format(src=plain, to=directory / ".tensors")],
                              capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert_model(directory, arrays)


@pytest.mark.parametrize("script", [pytest.param(script, id=name) for name, script in PROGRAMS.items()])
def test_programs(directory, plain, script):
    """Each program that copies files makes tensors of them, without a complaint."""
    run_twice(directory, plain, script)


def test_several_writers_in_turn(one, plain):
    """A descriptor that several programs write to in turn: who closes a copy of it before there is a tensor is
    told so, and what the last of them closes is one."""
    run_twice(one, plain, IN_TURN)


@pytest.mark.parametrize("script", [pytest.param("cp -a {src}/. {to}/", id="cp-a"),
                                    pytest.param("tar c -C {src} . | tar x -C {to}", id="tar"),
                                    pytest.param("rsync -aI {src}/ {to}/", id="rsync")])
def test_directory_with_its_times(one, plain, script):
    """Programs that set the directory's times and mode when they have filled it."""
    run_twice(one, plain, script)


def test_numpy(directory):
    """numpy.save, open_memmap, and mmap_mode r+ of what is there."""
    made = np.lib.format.open_memmap(directory / ".tensors/a.npy", mode="w+", dtype="<f4", shape=(3, 100))
    made[:] = 5
    made.flush()
    del made
    np.save(directory / ".tensors/b.npy", some(2))
    assert_model(directory, {"a": np.full((3, 100), 5, "<f4"), "b": some(2)})
    for name in "ab":
        changed = np.load(directory / f".tensors/{name}.npy", mmap_mode="r+")
        changed[:] = 7
        changed.flush()
        del changed
    wait_for(lambda: all((a == 7).all() for a in model(directory).values()), 60, "what was written by mappings")


def test_safetensors(directory):
    """save_file writes a temporary file and renames it; any name in it will do; the last form written counts."""
    for number in range(30):
        safetensors_numpy.save_file({"any": some(number)}, directory / ".tensors/a.safetensors")
        assert np.array_equal(np.load(directory / ".tensors/a.npy"), some(number))
        np.save(directory / ".tensors/a.npy", some(-number))
        loaded = safetensors_numpy.load_file(directory / ".tensors/a.safetensors")
        assert list(loaded) == ["a"] and np.array_equal(loaded["a"], some(-number))
        assert_model(directory, {"a": some(-number)})
    assert os.listdir(directory / ".tensors") == ["a.npy"]


def test_torch_save_is_refused(one):
    torch = pytest.importorskip("torch")
    np.save(one / ".tensors/a.npy", some(1))
    before = tree_hashes(one)
    with pytest.raises((OSError, RuntimeError)):
        torch.save({"a": torch.zeros(5)}, one / ".tensors/a.npy")
    assert "npy-magic" in reason(one)
    assert tree_hashes(one) == before


# ---- names ----


def test_rename_link_and_unlink(directory):
    """Pending or in a shard, over another tensor, into another model and another variant."""
    other = directory.parent / "n"
    other.mkdir()
    here, there = directory / ".tensors", other / ".tensors"
    for look in (False, True):
        for number, name in enumerate("abcde"):
            np.save(here / f"{name}.npy", some(number))
        if look:
            os.listdir(directory)
        os.rename(here / "a.npy", here / "renamed.npy")
        if look:
            os.unlink(here / "linked.npy")
        os.link(here / "b.npy", here / "linked.npy")
        os.unlink(here / "c.npy")
        os.rename(here / "d.npy", there / "moved.npy")
        os.rename(here / "e.npy", here / "b.npy")
        assert_model(directory, {"renamed": some(0), "linked": some(1), "b": some(4)})
        assert_model(other, {"moved": some(3)})
        os.rename(there / "moved.npy", directory / ".tensors@fp16/moved.npy")
        assert_model(other, {})
        assert_model(directory, {"moved": some(3)}, ".fp16")


def test_rename_at_once(one):
    """Renamed the moment it is closed: the old name is none of a tensor."""
    for number in range(100):
        np.save(one / ".tensors/a.npy", some(number))
        os.rename(one / ".tensors/a.npy", one / f".tensors/b{number}.npy")
        assert not (one / ".tensors/a.npy").exists(), number
    assert_model(one, {f"b{number}": some(number) for number in range(100)})


def test_rename_while_open(one):
    """A writer's file is renamed after one of its closes: one tensor, of the new name."""
    fd = os.open(one / ".tensors/a.npy", os.O_RDWR | os.O_CREAT)
    write_all(fd, npy(some(1)))
    os.close(os.dup(fd))
    refused = errno_of(os.rename, one / ".tensors/a.npy", one / ".tensors/b.npy")
    os.close(fd)
    assert refused == 0
    assert_model(one, {"b": some(1)})


def test_rename_over_one_that_is_open(one):
    """As of any file: who has the old one open writes to what has no name any more."""
    for name, number in ("a", 1), ("b", 2):
        np.save(one / f".tensors/{name}.npy", some(number))
    os.listdir(one)
    fd = os.open(one / ".tensors/b.npy", os.O_RDWR)
    os.rename(one / ".tensors/a.npy", one / ".tensors/b.npy")
    os.pwrite(fd, np.float32(9).tobytes(), 128)
    os.close(fd)
    assert_model(one, {"b": some(1)})


def test_what_names_cannot_do(one):
    """Other kinds of files, links and moves out of or into .tensors."""
    np.save(one / "file.npy", some(1))
    np.save(one / ".tensors/a.npy", some(1))
    inside, outside = one / ".tensors/x.npy", one / "x.npy"
    assert errno_of(os.rename, one / "file.npy", inside) == errno.EXDEV
    assert errno_of(os.link, one / "file.npy", inside) == errno.EXDEV
    assert errno_of(os.rename, one / ".tensors/a.npy", outside) == errno.EXDEV
    assert errno_of(os.link, one / ".tensors/a.npy", outside) == errno.EXDEV
    assert errno_of(os.rename, one / ".tensors/a.npy", one / ".tensors/a.txt") == errno.EINVAL
    for make in (os.mkdir, os.mkfifo, lambda path: os.symlink("x", path)):
        assert errno_of(make, inside) in (errno.EROFS, errno.EPERM)
    assert errno_of(os.unlink, inside) == errno.ENOENT
    assert_model(one, {"a": some(1)})


def test_temporary_files(mount, one):
    """They are in no model, are renamed as often as one likes, and are gone with the driver."""
    empty = mount.disk()
    write_file(one / ".tensors/.tmp", b"x" * 4 * MIB)
    os.rename(one / ".tensors/.tmp", one / ".tensors/.x.npy.AbCdEf")
    assert read_file(one / ".tensors/.x.npy.AbCdEf") == b"x" * 4 * MIB
    assert errno_of(os.rename, one / ".tensors/.x.npy.AbCdEf", one / ".tensors/x.npy") == errno.EBADMSG
    assert "npy-magic" in reason(one)
    write_file(one / ".tensors/.x.npy.AbCdEf", npy(some(5)))
    os.rename(one / ".tensors/.x.npy.AbCdEf", one / ".tensors/x.npy")
    assert_model(one, {"x": some(5)})
    write_file(one / ".tensors/.left", b"x" * 4 * MIB)
    mount.remount()
    assert not (one / ".tensors/.left").exists()
    mount.wait_disk(empty + MIB)


# ---- directories ----


def test_directory_moved_and_removed(mount, one):
    """With tensors that wait: mv takes them along, rm -rf removes them, an unmount puts them into shards."""
    arrays = {f"n{number}": some(number) for number in range(20)}

    def put(directory):
        for name, array in arrays.items():
            np.save(directory / f".tensors/{name}.npy", array)

    put(one)
    subprocess.run(["mv", one, mount.dir / "moved"], check=True)
    assert_model(mount.dir / "moved", arrays)
    put(mount.dir / "moved")
    subprocess.run(["rm", "-rf", mount.dir / "moved"], check=True)
    assert os.listdir(mount.dir) == []
    one.mkdir()
    put(one)
    mount.remount()
    assert_model(one, arrays)
    shutil.rmtree(one)
    mount.wait_sealed()
    wait_for(lambda: mount.status()["objects"] == 0, 60, "every object given back")


def exchange(one, shard):
    shutil.copyfile(shard, one / "other.bin")
    renameat2(one / "other.bin", shard, RENAME_EXCHANGE)


def exchange_the_other_way(one, shard):
    shutil.copyfile(shard, one / "other.bin")
    renameat2(shard, one / "other.bin", RENAME_EXCHANGE)


def move_in(one, shard):
    os.rename(shard, one.parent / "moved")
    os.rename(one.parent / "moved", shard)


@pytest.mark.parametrize("moved", [move_in, exchange, exchange_the_other_way])
def test_shard_that_was_renamed(one, moved):
    """What the kernel knew of a file under another name does not hide what the name stands for later."""
    shard = one / "model.safetensors"
    safetensors_numpy.save_file({"a": some(1), "b": some(2)}, shard)
    moved(one, shard)
    assert_model(one, {"a": some(1), "b": some(2)})
    np.save(one / ".tensors/a.npy", some(3))
    wait_for(lambda: safetensors_numpy.load_file(shard)["a"][0] == 3, 5, "the shard with the new tensor")
    assert_model(one, {"a": some(3), "b": some(2)})


def test_directory_removed_under_a_writer(mount, one):
    """The close finds no directory any more: nothing is left of it."""
    fd = os.open(one / ".tensors/a.npy", os.O_RDWR | os.O_CREAT)
    write_all(fd, npy(some(1)))
    shutil.rmtree(one)
    assert errno_of(os.close, fd) in (0, errno.ENOENT)
    assert os.listdir(mount.dir) == []
    wait_for(lambda: mount.status()["files"] == 0, 60, "the file given back")


@pytest.mark.parametrize("kind", [
    "directory",
    "fifo", "pointer", "broken"])
def test_something_else_in_the_way(one, kind):
    """Where a shard's name is taken by something else, the tensor is refused and that stays."""
    path = one / "model.safetensors"
    if kind == "directory":
        path.mkdir()
        write_file(path / "inside", b"x")
    elif kind == "pointer":
        write_file(path, shards.LFS_POINTER)
    elif kind == "broken":
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        os.write(fd, shards.valid()[:500])
    else:
        os.mkfifo(path)
    refused = errno_of(np.save, one / ".tensors/a.npy", some(1))
    before = os.lstat(path)
    os.listdir(one)
    assert (os.lstat(path).st_ino, os.lstat(path).st_mode) == (before.st_ino, before.st_mode)
    if kind == "directory":
        assert read_file(path / "inside") == b"x"
    if kind == "broken":
        os.close(fd)
        assert errno_of(np.save, one / ".tensors/a.npy", some(1)) == errno.EBUSY
        assert "model.safetensors" in reason(one)
    assert refused == errno.EBUSY


def test_unmounted_after_updates(mount, one):
    """Unmounted at once after an update: the tensors are in their shards, and nothing is left of the old ones."""
    for turn in range(2):
        for number in range(5):
            np.save(one / f".tensors/{number}.npy", some(turn, 50_000))
        os.listdir(one)
    for number in range(5):
        np.save(one / f".tensors/{number}.npy", some(9, 50_000))
    mount.umount()
    mount.assert_clean()
    mount.mount()
    assert_model(one, {str(number): some(9, 50_000) for number in range(5)})


@pytest.mark.parametrize("with_index", [True, False])
def test_shards_that_are_missing(one, with_index):
    """The first of three shards is there, as while a model is downloaded: nothing of it is renamed or forgotten."""
    write_file(one / "model-00001-of-00003.safetensors", shards.valid())
    if with_index:
        names = {"a": 1, "b": 1, "c": 2, "d": 3}
        names = {name: f"model-{number:05d}-of-00003.safetensors" for name, number in names.items()}
        index = {"metadata": {}, "weight_map": names}
        write_file(one / "model.safetensors.index.json", json.dumps(index).encode())
    before = tree_hashes(one)
    assert errno_of(np.save, one / ".tensors/new.npy", some(1)) == errno.EBUSY
    assert tree_hashes(one) == before


def test_links_to_shards(mount, one):
    """A snapshot of the hub's cache: the link gives way to a shard of its own, the blob stays as it is."""
    blob = mount.dir / "blob"
    write_file(blob, shards.valid())
    os.symlink("../blob", one / "model.safetensors")
    digest = sha256(blob)
    np.save(one / ".tensors/new.npy", some(1))
    assert sorted(model(one)) == ["a", "b", "new"]
    assert sha256(blob) == digest


def test_variants(one):
    """Each variant is a model of its own, cut by the directory's limit, at once and later."""
    for name in "abcd":
        np.save(one / f".tensors@fp16/{name}.npy", some(1, 100, "<f2"))
        np.save(one / f".tensors/{name}.npy", some(2, 100))
    assert sorted(os.listdir(one)) == ["model.fp16.safetensors", "model.safetensors"]
    os.setxattr(one, LIMIT, b"400")
    names = sorted(os.listdir(one))
    assert [name for name in names if "fp16" not in name] == [
        *(f"model-0000{n}-of-00004.safetensors" for n in (1, 2, 3, 4)), "model.safetensors.index.json"]
    assert [name for name in names if "fp16" in name] == [
        "model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors",
        "model.safetensors.index.fp16.json"]


def test_last_tensor(one):
    """Also without a tensor there is a model that loads; empty tensors are as good as others."""
    for name, shape in {"z": (0, 3), "a": (0,), "m": (2, 2)}.items():
        np.save(one / f".tensors/{name}.npy", np.zeros(shape, "<f4"))
        os.listdir(one)
    assert {name: array.shape for name, array in model(one).items()} == {"z": (0, 3), "a": (0,), "m": (2, 2)}
    for name in ("m", "a", "z"):
        os.unlink(one / f".tensors/{name}.npy")
        assert name not in model(one)
    assert os.listdir(one) == ["model.safetensors"]


def test_metadata_is_kept(one):
    """Of each shard that is made anew; a new model has transformers' own."""
    np.save(one / ".tensors/a.npy", some(1))
    header = json.loads(read_file(one / "model.safetensors")[8:].split(b"}}")[0] + b"}}")
    assert header["__metadata__"] == {"format": "pt"}
    (one / "model.safetensors").unlink()
    for number, name in enumerate("ab", 1):
        safetensors_numpy.save_file({name: some(0)}, one / f"model-0000{number}-of-00002.safetensors",
                                    metadata={"shard": name})
    for name in "ab":
        np.save(one / f".tensors/{name}.npy", some(5))
    for number, name in enumerate("ab", 1):
        with safetensors_numpy.safe_open(one / f"model-0000{number}-of-00002.safetensors", "np") as f:
            assert (f.metadata(), list(f.keys())) == ({"shard": name}, [name])


# ---- sizes, mounts, users ----


@pytest.mark.parametrize("limit", [
    None, "at-once"])
def test_one_tensor_of_many(mount, one, limit):
    """An update makes one shard a new inode, and stores the tensor's size; old readers keep the old bytes."""
    for number in range(12):
        np.save(one / f".tensors/n{number:02d}.npy", np.random.default_rng(number).random(64 * KIB))
    os.setxattr(one, LIMIT, b"2MB")
    if not limit:
        os.removexattr(one, LIMIT)
    old, before = {path: read_file(path) for path in one.glob("*.safetensors")}, inodes(one)
    assert len(old) == 4
    stored = mount.wait_sealed()["stored_bytes"]
    readers = {path: os.open(path, os.O_RDONLY) for path in old}
    shard = json.loads((one / "model.safetensors.index.json").read_text())["weight_map"]["n05"]
    np.save(one / ".tensors/n05.npy", np.random.default_rng(99).random(64 * KIB))
    after = inodes(one)
    read = {path: os.pread(fd, len(old[path]) + 1, 0) for path, fd in readers.items()}
    for fd in readers.values():
        os.close(fd)
    assert read == old
    assert before.keys() == after.keys()
    assert {name for name in after if after[name] != before[name] and "index" not in name} == {shard}
    wait_for(lambda: abs(mount.wait_sealed()["stored_bytes"] - stored) < 64 * KIB, 60, "the old tensor given back")


def test_limit_of_the_mount(unmounted):
    """-o max_shard_size= holds for new shards; no tensor leaves its shard."""
    one = unmounted.mount("max_shard_size=100KB").dir / "m"
    one.mkdir()
    for number in range(8):
        np.save(one / f".tensors/{number}.npy", some(number, 10_000))
    assert len(list(one.glob("*.safetensors"))) == 4
    assert_model(one, {str(number): some(number, 10_000) for number in range(8)})


def test_read_only_and_off(unmounted):
    one = unmounted.mount().dir / "m"
    one.mkdir()
    np.save(one / ".tensors/a.npy", some(1))
    unmounted.umount()
    unmounted.mount("ro")
    for call in (lambda: np.save(one / ".tensors/b.npy", some(1)), lambda: os.unlink(one / ".tensors/a.npy"),
                 lambda: os.open(one / ".tensors/a.npy", os.O_RDWR),
                 lambda: os.rename(one / ".tensors/a.npy", one / ".tensors/b.npy")):
        assert errno_of(call) == errno.EROFS
    assert_model(one, {"a": some(1)})
    unmounted.umount()
    unmounted.mount("views=off")
    assert not (one / ".tensors").exists()
    assert_model(one, {"a": some(1)})


@pytest.mark.root_only
def test_owners_and_modes(unmounted, other_user):
    """A new shard is its writer's, by the umask; a shard that is made anew stays its owner's."""
    for path in [unmounted.dir.parent, *unmounted.dir.parent.parents]:
        path.chmod(path.stat().st_mode | 0o011)
    one = unmounted.mount("allow_other").dir / "m"
    os.chmod(unmounted.dir, 0o755)
    one.mkdir()
    os.chmod(one, 0o777)

    def act(name):
        os.umask(0o027)
        return errno_of(np.save, one / f".tensors/{name}.npy", some(1))

    assert in_child(act, "a", user=other_user) == 0
    info = os.stat(one / "model.safetensors")
    assert (info.st_uid, info.st_mode & 0o777) == (other_user.pw_uid, 0o640)
    np.save(one / ".tensors/root.npy", some(2))
    info = os.stat(one / "model.safetensors")
    assert (info.st_uid, info.st_mode & 0o777) == (other_user.pw_uid, 0o640)
    os.chmod(one, 0o755)
    assert in_child(act, "b", user=other_user) == errno.EACCES
    assert in_child(errno_of, os.unlink, one / ".tensors/a.npy", user=other_user) == errno.EACCES
    assert sorted(model(one)) == ["a", "root"]
