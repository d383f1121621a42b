"""Views beside a model: what is in them, what tools make of them, and that nobody sees or changes them by chance."""

import errno
import fcntl
import json
import mmap
import os
import shutil
import stat
import subprocess
import time

import pytest

from support import shards
from support.files import (FALLOC_PUNCH_HOLE, RENAME_EXCHANGE, errno_of, fallocate, random_bytes, read_file, renameat2,
                           tree_hashes, write_file)
from support.mounts import disk_blocks, wait_for

FILES = {
    "config.json": b'{"hidden_size": 4}',
    "tokenizer.json": b"{}" * 5000,
    "train.log": random_bytes(5, 300_000),
    "empty": b"",
    "optimizer.safetensors": shards.valid(7),
    "model.fp16.safetensors": shards.shard({"half": random_bytes(8, 500)}),
    "original/params.json": b"{}",
    "original/deep/model.safetensors": shards.valid(9),
}
TENSORS = {"one": random_bytes(1, 100), "three": random_bytes(3, 70_000), "two": random_bytes(2, 2000)}
WEIGHTS = shards.shard(TENSORS)
CUT = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]


@pytest.fixture
def model(mount):
    """A model directory with all that may be in one."""
    path = mount.dir / "model"
    (path / "original/deep").mkdir(parents=True)
    for name, content in FILES.items():
        write_file(path / name, content)
    write_file(path / "model.safetensors", WEIGHTS)
    (path / "link.json").symlink_to("config.json")
    (path / "latest").symlink_to("original/deep")
    return path


# What is there beside the weights in a cut: links are what they lead to.
BESIDE = FILES | {"link.json": FILES["config.json"],
                  "latest/model.safetensors": FILES["original/deep/model.safetensors"]}


def found_by_walk(root):
    """{relative path: bytes} below `root`; what the listing says of each is what stat says."""
    found, directories = {}, [root]
    while directories:
        directory = directories.pop()
        for entry in os.scandir(directory):
            info = os.lstat(entry.path)
            assert (entry.inode(), entry.is_dir(), entry.is_file()) == (
                info.st_ino, stat.S_ISDIR(info.st_mode), stat.S_ISREG(info.st_mode))
            if entry.is_dir():
                directories.append(entry.path)
            else:
                found[os.path.relpath(entry.path, root)] = read_file(entry.path)
                assert (info.st_size, info.st_nlink) == (len(found[os.path.relpath(entry.path, root)]), 1)
    return found


# ---- what there is ----


def test_tensors(model):
    """.tensors lists each tensor once; the other form is found by name; nothing else is."""
    shown = model / ".tensors"
    assert sorted(os.listdir(shown)) == ["one.npy", "three.npy", "two.npy"]
    found = found_by_walk(shown)
    assert {name: content[-len(TENSORS[name[:-4]]):] for name, content in found.items()} == {
        f"{name}.npy": data for name, data in TENSORS.items()}
    for name, data in TENSORS.items():
        alone = read_file(shown / f"{name}.safetensors")
        assert alone == shards.shard({name: data}, metadata=False)
    for name in ("one", "one.NPY", "One.npy", "four.npy", "one.npy.npy", ".npy", "one.pt", ".tensors", ".shards",
                 "config.json"):
        assert errno_of(os.stat, shown / name) == errno.ENOENT
    assert errno_of(os.stat, shown / "one.npy/x") == errno.ENOTDIR


def test_attributes(model):
    """Modes, owner and times are those of the shard or directory; inode numbers are those of no other file."""
    os.chmod(model / "model.safetensors", 0o640)
    os.utime(model / "model.safetensors", ns=(10**18 + 1, 10**18 + 2))
    weights, directory = os.stat(model / "model.safetensors"), os.stat(model)
    for path in (".tensors/one.npy", ".tensors/one.safetensors", ".shards/single/model.safetensors",
                 f".shards/71KB/{CUT[0]}"):
        info = os.stat(model / path)
        assert (info.st_mode & ~0o222, info.st_uid, info.st_gid, info.st_mtime_ns) == (
            weights.st_mode & ~0o222, weights.st_uid, weights.st_gid, weights.st_mtime_ns)
        assert info.st_blocks == (info.st_size + 511) // 512
    for path in (".tensors", ".shards", ".shards/5GB"):
        info = os.stat(model / path)
        assert (stat.S_IMODE(info.st_mode) & ~directory.st_mode, info.st_uid) == (0, directory.st_uid)
    paths = [*(model / ".tensors").iterdir(), *(model / ".shards/71KB").rglob("*"),
             *(model / ".shards/single").iterdir(), *model.rglob("*"),
             *(model / name for name in (".tensors", ".shards", ".shards/single", ".shards/71KB"))]
    beside = {os.path.basename(path) for path in BESIDE} | {"original", "deep", "latest"}
    numbers = [os.lstat(path).st_ino for path in paths if ".shards" not in str(path) or path.name not in beside]
    assert len(set(numbers)) == len(numbers)
    before = {path: os.stat(path).st_ino for path in paths}
    write_file(model / "model.safetensors", shards.shard(TENSORS | {"one": random_bytes(9, 100)}))
    assert before == {path: os.stat(path).st_ino for path in paths}


def test_cuts(model):
    """A cut has the shards, the index, and all else that the directory has, links and other variants with it."""
    assert found_by_walk(model / ".shards/single") == BESIDE | {"model.safetensors": WEIGHTS}
    found = found_by_walk(model / ".shards/71KB")
    assert found.keys() == BESIDE.keys() | set(CUT)
    assert all(found[name] == content for name, content in BESIDE.items())
    assert json.loads(found[CUT[2]]) == {
        "metadata": {"total_parameters": 72_100, "total_size": 72_100},
        "weight_map": {"one": CUT[0], "three": CUT[0], "two": CUT[1]}}
    for name in ("nothing", "model-00001-of-00003.safetensors", ".tensors", ".shards", "original/nothing"):
        assert errno_of(os.stat, model / ".shards/71KB" / name) == errno.ENOENT
    # The model has no shard of this name there: what is in the directory itself is not shown.
    assert errno_of(os.stat, model / ".shards/71KB/model.safetensors") == errno.ENOENT


SIZES = {"1": 4, "70000": 4, "71kb": 3, "0.071MB": 3, "72100": 1, "72099": 3, "70.5 KiB": 1, "5GB": 1, "1PB": 1,
         "single": 1, "9223372036854775807": 1}
NO_SIZES = ["0", "0KB", "-1", "+5", "1e3", "5G", "GB", "5GB ", " 5GB", "0x10", "Single", "nothing",
            "9223372036854775808", "99999999999999999999999", "9300000PB", "5GB5", "1..5GB", "٣", "..x"]


def test_sizes(model):
    """Every way to write a size, and what is none; a listing has those that are in use, and `single`."""
    for text, count in SIZES.items():
        assert len([name for name in os.listdir(model / ".shards" / text) if name.startswith("model")
                    and "fp16" not in name]) == count, text
    for text in NO_SIZES:
        assert errno_of(os.stat, model / ".shards" / text) == errno.ENOENT, text
    listed = os.listdir(model / ".shards")
    assert len(set(listed)) == len(listed)
    assert {"single", "5GB", "70KB"} <= set(listed)
    for name in listed:
        assert os.path.isdir(model / ".shards" / name)


def test_variants(model):
    """.tensors@fp16 and .shards@fp16 are of the variant alone; one that is not there is empty."""
    half = FILES["model.fp16.safetensors"]
    assert os.listdir(model / ".tensors@fp16") == ["half.npy"]
    assert read_file(model / ".tensors@fp16/half.npy").endswith(random_bytes(8, 500))
    found = found_by_walk(model / ".shards@fp16/single")
    assert found == BESIDE | {"model.safetensors": WEIGHTS, "model.fp16.safetensors": half}
    assert os.listdir(model / ".tensors@int8") == os.listdir(model / ".shards@int8") == []
    assert errno_of(os.stat, model / ".shards@int8/single") == errno.ENOENT
    for name in (".tensors@", ".shards@", ".tensorsfp16", ".tensor", ".tensors.fp16", ".TENSORS", "tensors",
                 ".shards-1"):
        assert errno_of(os.stat, model / name) == errno.ENOENT
        (model / name).mkdir()
        (model / name).rmdir()


def test_everywhere(mount):
    """Each directory has them, the root and empty ones too; files, and the views themselves, have not."""
    (mount.dir / "empty").mkdir()
    write_file(mount.dir / "model.safetensors", WEIGHTS)
    assert len(os.listdir(mount.dir / ".tensors")) == 3
    assert os.listdir(mount.dir / ".shards/single") in (["model.safetensors", "empty"], ["empty", "model.safetensors"])
    for name in (".tensors", ".shards"):
        assert os.listdir(mount.dir / "empty" / name) == []
        assert errno_of(os.listdir, mount.dir / "model.safetensors" / name) == errno.ENOTDIR
        assert errno_of(os.listdir, mount.dir / ".tensors" / name) == errno.ENOENT
        assert errno_of(os.listdir, mount.dir / ".shards" / name) == errno.ENOENT
    os.rmdir(mount.dir / "empty")


@pytest.mark.parametrize("views", ["hidden", "off"])
def test_option(unmounted, views):
    """-o views=hidden is how it is without; with off the names are names like any other."""
    mount = unmounted.mount(f"views={views}")
    write_file(mount.dir / "model.safetensors", WEIGHTS)
    assert (mount.dir / ".tensors").exists() == (mount.dir / ".shards/1GB").exists() == (views == "hidden")
    if views == "off":
        (mount.dir / ".tensors").mkdir()
        write_file(mount.dir / ".tensors/mine", b"1")
        write_file(mount.dir / ".shards", b"2")
        mount.umount()
        mount.mount()  # what is stored under these names is not hidden by what is only shown
        assert (read_file(mount.dir / ".tensors/mine"), read_file(mount.dir / ".shards")) == (b"1", b"2")
        assert sorted(os.listdir(mount.dir)) == [".shards", ".tensors", "model.safetensors"]
    assert unmounted.run("mount", mount.store, mount.dir, "-o", "views=some", check=False).returncode == 2


def test_listed(unmounted):
    """With -o views=listed they are in the listing of each model, and of no other directory."""
    mount = unmounted.mount("views=listed")
    model = mount.dir / "model"
    (model / "empty").mkdir(parents=True)
    write_file(model / "model.safetensors", WEIGHTS)
    assert sorted(os.listdir(model)) == [".shards", ".tensors", "empty", "model.safetensors"]
    assert os.listdir(mount.dir) == ["model"] and os.listdir(model / "empty") == []
    assert sorted(found_by_walk(mount.dir)) == sorted(f"model/{name}" for name in (
        ".shards/single/model.safetensors", ".tensors/one.npy", ".tensors/three.npy", ".tensors/two.npy",
        "model.safetensors"))


@pytest.mark.parametrize("settled", [True, False])
def test_listed_model_is_removed(unmounted, settled):
    """rm -r of a model whose views are listed; one that has tensors is not removed by rmdir of its views."""
    model = unmounted.mount("views=listed").dir / "model"
    model.mkdir()
    write_file(model / "model.safetensors", WEIGHTS)
    if not settled:
        write_file(model / ".tensors/four.npy", read_file(model / ".tensors/one.npy"))
    for view in (".tensors", ".shards"):
        assert errno_of(os.rmdir, model / view) == errno.ENOTEMPTY
    done = subprocess.run(["rm", "-r", model], capture_output=True, text=True)
    assert (done.returncode, done.stderr, os.listdir(unmounted.dir)) == (0, "", [])


def test_many(mount):
    """10,000 tensors: listed, each found, cut into as many shards; 600 other files are beside them."""
    tensors = {f"layer.{number}": b"%08d" % number for number in range(10_000)}
    write_file(mount.dir / "model.safetensors", shards.shard(tensors))
    for number in range(600):
        write_file(mount.dir / f"{number}.txt", b"%d" % number)
    shown = mount.dir / ".tensors"
    for _ in range(2):
        assert sorted(os.listdir(shown)) == sorted(f"{name}.npy" for name in tensors)
    assert {entry.name: entry.stat().st_size for entry in os.scandir(shown)} == {f"{name}.npy": 136 for name in tensors}
    for number in (0, 1, 511, 512, 5000, 9999):
        assert read_file(shown / f"layer.{number}.npy").endswith(b"%08d" % number)
    names = os.listdir(mount.dir / ".shards/8")
    assert len(set(names)) == len(names) == 10_000 + 1 + 600
    assert read_file(mount.dir / ".shards/8/model-07777-of-10000.safetensors").endswith(b"%08d" % 7776)
    assert read_file(mount.dir / ".shards/8/599.txt") == b"599"


@pytest.mark.long
def test_many_sizes(mount):
    """What is kept for views is bounded: EBUSY for one size too many, until they are not looked at any more."""
    write_file(mount.dir / "model.safetensors", shards.shard({f"t{number}": b"12345678" for number in range(60_000)}))
    sizes = range(100_000, 108_000, 1000)
    for size in sizes:
        assert "model.safetensors.index.json" in os.listdir(mount.dir / f".shards/{size}")
    assert errno_of(os.listdir, mount.dir / ".shards/300000") == errno.EBUSY
    assert len(os.listdir(mount.dir / f".shards/{sizes[-1]}")) > 2
    assert "too many sizes" in mount.log()
    time.sleep(10)
    wait_for(lambda: not errno_of(os.listdir, mount.dir / ".shards/300000") or time.sleep(10), 60, "room for a size")


# ---- links and directories beside the weights ----


def test_bad_links(model):
    """Links to themselves, through a file, out of the mount, absolute: left out, and the rest is there."""
    for name, target in (("self", "self"), ("through", "config.json/x"), ("nowhere", "nothing"),
                         ("out", "../../../etc/passwd"), ("long", "n" * 300)):
        (model / name).symlink_to(target)
    os.mkfifo(model / "fifo")
    assert found_by_walk(model / ".shards/single") == BESIDE | {"model.safetensors": WEIGHTS}


def test_directory_in_two_cuts(model):
    """Who works in a directory of one cut stays there when another cut is looked at."""
    fd = os.open(model / ".shards/70KB/original/deep", os.O_RDONLY)
    os.listdir(model / ".shards/5GB/original/deep")
    found = os.readlink(f"/proc/self/fd/{fd}")
    up = os.path.realpath(f"/proc/self/fd/{fd}/../..")
    os.close(fd)
    assert found == str(model / ".shards/70KB/original/deep")
    assert up == str(model / ".shards/70KB")


def test_one_size_written_twice(model):
    """Who works in .shards/70KB stays there when .shards/70000 is looked at."""
    fd = os.open(model / ".shards/70KB", os.O_RDONLY)
    os.listdir(model / ".shards/70000")
    found = os.readlink(f"/proc/self/fd/{fd}")
    os.close(fd)
    assert found == str(model / ".shards/70KB")


# ---- tools ----


def run(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


COPIES = [["cp", "-r"], ["cp", "-a"], ["rsync", "-a"], ["rsync", "-aHAXS"], ["copytree"], ["tar"]]


def test_copied_out(model, plain):
    """A cut is copied by the tools that people use; by rsync a second time nothing is."""
    source = model / ".shards/71KB"
    expected = tree_hashes(source)
    for command in COPIES:
        target = plain / "".join(command)
        if command == ["copytree"]:
            shutil.copytree(source, target)
        elif command == ["tar"]:
            target.mkdir()
            run("tar", "-C", source, "-cf", plain / "archive", ".")
            run("tar", "-C", target, "-xf", plain / "archive")
            run("tar", "-C", source, "-df", plain / "archive")
        elif shutil.which(command[0]):
            run(*command, f"{source}/.", target)
        else:
            continue  # not every machine has rsync
        assert tree_hashes(target) == expected, command
        if command[0] == "rsync":
            assert ".safetensors" not in run(*command, "-i", f"{source}/.", target)


def test_copy_can_be_changed(model, plain):
    """Who copies a cut can change and remove what he has: its modes let the owner write, as those of .tensors do."""
    run("cp", "-r", model / ".shards/71KB", plain / "copy")
    assert all(path.stat().st_mode & 0o200 for path in (plain / "copy", *(plain / "copy").rglob("*")))


def test_looked_at_by_tools(model, plain):
    """ls, du, find, cmp, sha256sum, stat, head, tail, file sizes by wc: no errors, right answers."""
    shown, cut = model / ".tensors", model / ".shards/71KB"
    assert len(run("ls", "-la", shown).splitlines()) == 6
    assert CUT[0] in run("ls", "-laiR", cut)
    assert run("find", shown, "-type", "f", "-size", "+60k").split() == [str(shown / "three.npy")]
    found = run("find", cut, "-type", "f", "-printf", "%P %s\n").splitlines()
    assert sorted(found) == sorted(f"{path} {len(content)}" for path, content in found_by_walk(cut).items())
    total = sum(128 + len(data) for data in TENSORS.values())
    assert int(run("du", "-sb", "--apparent-size", shown).split()[0]) == total
    run("du", "-a", cut)
    write_file(plain / "three", read_file(shown / "three.npy"))
    run("cmp", shown / "three.npy", plain / "three")
    run("cmp", model / ".shards/single/model.safetensors", model / "model.safetensors")
    assert run("sha256sum", shown / "three.npy").split()[0] == run("sha256sum", plain / "three").split()[0]
    assert subprocess.check_output(["tail", "-c", "5", shown / "one.npy"]) == TENSORS["one"][-5:]
    assert run("wc", "-c", shown / "one.npy").split()[0] == "228"
    assert run("diff", "-r", cut / "original", model / "original") == ""


def test_seen_by_nobody(model, plain):
    """Nothing of a view is in a listing or a copy of the model, before and after views were used."""
    expected = sorted(os.listdir(model))

    def look():
        assert sorted(os.listdir(model)) == expected
        assert ".tensors" not in run("ls", "-a", model) and ".shards" not in run("ls", "-aR", model.parent)
        assert "/." not in run("find", model)
        shutil.rmtree(plain / "copy", ignore_errors=True)
        run("cp", "-r", model, plain / "copy")
        assert sorted(os.listdir(plain / "copy")) == expected
        assert os.listxattr(model) == []

    look()
    found_by_walk(model / ".tensors")
    found_by_walk(model / ".shards/71KB")
    look()
    assert disk_blocks(plain / "copy") < 2_000_000


# ---- nothing can be written ----


def test_shards_cannot_be_written(model):
    """EROFS for whatever would change a cut, whoever asks; the model is as it was."""
    cut = model / ".shards/71KB"
    # EACCES: nobody may write, and root alone is told why. EXDEV: mv tries to copy then. EOPNOTSUPP: of attributes.
    refused = (errno.EROFS, errno.EPERM, errno.EXDEV, errno.EOPNOTSUPP, *([errno.EACCES] if os.geteuid() else []))
    before = tree_hashes(model)
    for path in (cut / CUT[0], cut / CUT[2], cut / "config.json", cut / "original/params.json"):
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND):
            assert errno_of(os.open, path, flags) in refused
        for function, *arguments in ((os.unlink,), (os.rename, cut / "new"), (os.rename, model / "new"),
                                     (os.link, model / "new"), (os.chmod, 0o777), (os.truncate, 0), (os.utime,),
                                     (os.chown, 1, 1), (os.setxattr, "user.x", b"1")):
            assert errno_of(function, path, *arguments) in refused, function
        with open(path, "rb") as f:
            assert errno_of(mmap.mmap, f.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_WRITE) == errno.EACCES
            assert errno_of(fallocate, f.fileno(), FALLOC_PUNCH_HOLE | 1, 0, 1) == errno.EBADF
            assert errno_of(fcntl.ioctl, f, 0x5701) == errno.ENOTTY
            os.fsync(f.fileno())
    for directory in (cut, cut / "original", model / ".shards"):
        new = directory / "new"
        for function, *arguments in ((os.mkdir, new), (os.mkfifo, new), (os.mknod, new), (write_file, new, b""),
                                     (os.symlink, "target", new)):
            assert errno_of(function, *arguments) in refused, function
        assert errno_of(os.rename, model / "config.json", directory / "new") in refused
        assert errno_of(os.link, model / "config.json", directory / "new") in refused
        assert errno_of(os.chmod, directory, 0o777) in refused
    assert errno_of(os.rmdir, cut / "original") in refused
    assert errno_of(os.rmdir, cut) in refused
    assert subprocess.run(["rm", "-rf", cut], capture_output=True).returncode == 1
    assert tree_hashes(model) == before


def test_tensors_are_not_changed_otherwise(model):
    """What makes no tensor is refused in .tensors: EROFS, or EPERM; who copies attributes along is let do it."""
    shown = model / ".tensors"
    refused = (errno.EROFS, errno.EPERM, errno.EOPNOTSUPP)
    before = tree_hashes(model)
    assert errno_of(os.mkdir, shown / "new") in refused
    assert errno_of(os.mkfifo, shown / "new") in refused
    assert errno_of(os.symlink, "one.npy", shown / "new") in refused
    assert errno_of(os.link, shown / "one.npy", model / "new") in (*refused, errno.EXDEV)
    assert errno_of(os.link, model / "config.json", shown / "new") in (*refused, errno.EXDEV)
    assert errno_of(os.rename, shown / "one.npy", model / "new") in (*refused, errno.EXDEV)
    assert errno_of(os.removexattr, shown / "one.npy", "user.weightfs.dtype") in refused
    assert errno_of(os.rmdir, shown) == errno.ENOTEMPTY
    assert errno_of(os.open, shown, os.O_RDWR | os.O_TMPFILE) != 0
    assert tree_hashes(model) == before


def test_view_is_not_replaced(model):
    """A directory cannot be renamed over a view, nor a view renamed or exchanged: the name is taken."""
    (model / "mine").mkdir()
    for name in (".tensors", ".shards", ".tensors@fp16"):
        assert os.path.isdir(model / name)
        assert errno_of(os.rename, model / "mine", model / name) != 0
        assert errno_of(renameat2, model / "mine", model / name, RENAME_EXCHANGE) != 0
        assert errno_of(os.rename, model / name, model / "other") != 0
    assert sorted(os.listdir(model)) == sorted({*(path.split("/")[0] for path in BESIDE), "model.safetensors", "mine"})
