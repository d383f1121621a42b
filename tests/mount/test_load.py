"""Many processes with mixed work on one mount: every answer is right, and nothing grows.

    WEIGHTFS_LOAD_PROCESSES  of the long form (default 64)
    WEIGHTFS_LOAD_SECONDS    of the long form (default 240)
    WEIGHTFS_LOAD_SEED       (default 1)
    WEIGHTFS_LOAD_CURVE      a file for the samples, as CSV
"""

import contextlib
import csv
import errno
import io
import json
import mmap
import os
import pathlib
import random
import shutil
import time
import traceback

import pytest

np = pytest.importorskip("numpy")

from support import shards
from support.files import KIB, MIB, RENAME_EXCHANGE, Child, pwrite_all, read_file, renameat2, write_file
from support.mounts import wait_for

PROCESSES = int(os.environ.get("WEIGHTFS_LOAD_PROCESSES", "64"))
SECONDS = float(os.environ.get("WEIGHTFS_LOAD_SECONDS", "240"))
SEED = int(os.environ.get("WEIGHTFS_LOAD_SEED", "1"))
CURVE = os.environ.get("WEIGHTFS_LOAD_CURVE")

SHARDS, TENSORS = 3, 3
LIMIT = "user.weightfs.max_shard_size"
GROWTH = 32 * MIB  # of the driver's memory, over a quarter more than it had in the first part
SPARE = 8          # threads
EMPTY_AGAIN = 4 * MIB  # disk blocks beside those of an empty store: spare files and pages
SETTLE = 120


# ---- a model, whole or not ----

def tensors_of(generation, number):
    """One tensor is in every generation, the others are its own."""
    made = {"generation": generation.to_bytes(8, "little"), f"base-{number}": shards.random_bytes(number, 90_001)}
    for tensor in range(TENSORS):
        seed = generation * 100 + number * 10 + tensor
        made[f"t{number}-{tensor}"] = shards.random_bytes(seed, 20_000 + 7001 * tensor)
    return made


def shard_name(number):
    return f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"


def save(directory, generation):
    """As savers do: under another name, then renamed."""
    directory.mkdir()
    write_file(directory / "config.json", json.dumps({"generation": generation}).encode())
    for number in range(SHARDS):
        write_file(directory / ".tmp", shards.shard(tensors_of(generation, number)))
        os.rename(directory / ".tmp", directory / shard_name(number))


def read_at(where, name):
    fd = os.open(name, os.O_RDONLY, dir_fd=where)
    try:
        with open(fd, "rb", closefd=False) as f:
            return f.read()
    finally:
        os.close(fd)


def load(directory):
    """The generation of a model of which every byte is right; None if it was removed meanwhile."""
    try:
        where = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        files = [read_at(where, shard_name(number)) for number in range(SHARDS)]
        generation = json.loads(read_at(where, "config.json"))["generation"]
    except FileNotFoundError:
        return None
    finally:
        os.close(where)
    for number, content in enumerate(files):
        assert content == shards.shard(tensors_of(generation, number)), f"shard {number} of {directory}"
    return generation


def generation_of(content):
    """What a shard itself says: its first tensor."""
    at = 8 + int.from_bytes(content[:8], "little")
    return int.from_bytes(content[at:at + 8], "little")


# ---- what a process does, one thing after the other ----

class Worker:
    """In a directory of its own, beside `current`, which all replace."""

    def __init__(self, root, number, seed):
        self.current = root / "current"
        self.own = root / f"worker-{number}"
        self.generator = random.Random(seed * 1000 + number)
        self.generation = number * 1_000_000
        self.done = {}

    def run(self, deadline):
        self.own.mkdir()
        jobs = [self.replace, self.load, self.load, self.copy, self.reshard, self.put_tensors, self.look_at_all,
                self.map, self.rename, self.small_files, self.change]
        while time.monotonic() < deadline:
            job = self.generator.choice(jobs)
            job()
            self.done[job.__name__] = self.done.get(job.__name__, 0) + 1
        shutil.rmtree(self.own)
        return self.done

    def replace(self):
        """The model that all load is another one at once."""
        self.generation += 1
        save(self.own / "next", self.generation)
        renameat2(self.own / "next", self.current, RENAME_EXCHANGE)
        shutil.rmtree(self.own / "next")

    def load(self):
        load(self.current)

    def copy(self):
        """cp -r of a model, which somebody may remove meanwhile."""
        copy = self.own / "copy"
        try:
            shutil.copytree(self.current, copy)
        except (shutil.Error, FileNotFoundError) as error:
            assert_only_missing(error)
        else:
            # By the path, and from a listing: two generations may be in it, or a part; but each shard is whole.
            for number in range(SHARDS):
                if (copy / shard_name(number)).exists():
                    content = read_file(copy / shard_name(number))
                    assert content == shards.shard(tensors_of(generation_of(content), number)), f"shard {number}: {copy}"
        shutil.rmtree(copy)

    def reshard(self):
        """Cut again, by the attribute and by a view; all tensors are there each time."""
        model = self.own / "cut"
        if not model.exists():
            save(model, self.generation)
            self.cut = {name: data for number in range(SHARDS) for name, data in tensors_of(self.generation, number).items()
                        if name != "generation"}
        size = self.generator.choice(["100KB", "200KB", "5MB", "150000"])
        assert_tensors(model / ".shards" / size, self.cut)
        if self.generator.random() < 0.5:
            os.setxattr(model, LIMIT, size.encode())
            assert_tensors(model, self.cut)
        if self.generator.random() < 0.2:
            shutil.rmtree(model)

    def put_tensors(self):
        """Written, replaced, renamed and removed one by one; the shards are those of what is there."""
        model = self.own / "tensors"
        model.mkdir(exist_ok=True)
        there = {}
        for _ in range(self.generator.randrange(1, 6)):
            name, value = f"n{self.generator.randrange(4)}", self.generator.randrange(256)
            array = np.full(self.generator.choice([10, 30_000]), value, "<u4")
            out = io.BytesIO()
            np.save(out, array)
            write_file(model / ".tensors" / f"{name}.npy", out.getvalue())
            there[name] = array.tobytes()
        first = next(iter(there))
        os.rename(model / ".tensors" / f"{first}.npy", model / ".tensors" / "moved.npy")
        there["moved"] = there.pop(first)
        assert sorted(os.listdir(model / ".tensors")) == sorted(f"{name}.npy" for name in there)
        assert_tensors(model, there)
        for name in there:
            os.unlink(model / ".tensors" / f"{name}.npy")
        shutil.rmtree(model)

    def look_at_all(self):
        """find -ls of the whole mount."""
        for directory, names, files in os.walk(self.own.parent):
            for name in names + files:
                try:
                    os.lstat(os.path.join(directory, name))
                except FileNotFoundError:
                    pass

    def map(self):
        """A mapping reads the same bytes to the end, whatever becomes of the file."""
        content = shards.random_bytes(self.generator.randrange(8), 400_000)
        path = self.own / "mapped.bin"
        write_file(path, content)
        with open(path, "rb") as f:
            mapping = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
        os.unlink(path)
        assert mapping[:] == content
        mapping.close()

    def rename(self):
        """Two names of a file, moved about."""
        content = self.generator.randbytes(self.generator.choice([100, 70_000]))
        a, b, c = (self.own / name for name in ("a", "b", "c"))
        write_file(a, content)
        os.link(a, b)
        os.rename(b, c)
        renameat2(a, c, RENAME_EXCHANGE)
        assert os.stat(a).st_nlink == 2 and read_file(c) == content
        os.unlink(a)
        assert os.stat(c).st_nlink == 1 and read_file(c) == content
        os.unlink(c)

    def small_files(self):
        """Objects as git has them: many, small, written aside and renamed."""
        base = self.own / "objects"
        base.mkdir(exist_ok=True)
        contents = {}
        for _ in range(30):
            content = self.generator.randbytes(self.generator.randrange(1, 3000))
            path = base / content[:1].hex() / (content[1:9].hex() + str(len(contents)))
            path.parent.mkdir(exist_ok=True)
            write_file(path.with_suffix(".lock"), content)
            os.rename(path.with_suffix(".lock"), path)
            contents[path] = content
        for path, content in contents.items():
            assert read_file(path) == content, path
        shutil.rmtree(base)

    def change(self):
        """A file that is written again in the middle, sealed meanwhile or not."""
        path = self.own / "changed.bin"
        content = bytearray(self.generator.randbytes(200_000))
        write_file(path, content)
        time.sleep(self.generator.choice([0, 0, 0.5]))
        fd = os.open(path, os.O_RDWR)
        pwrite_all(fd, b"changed", 100_000)
        content[100_000:100_007] = b"changed"
        assert os.pread(fd, len(content), 0) == content
        os.close(fd)
        assert read_file(path) == content
        os.unlink(path)


def assert_only_missing(error):
    """Of a copy of what was removed meanwhile."""
    reasons = [entry[2] for entry in error.args[0]] if isinstance(error, shutil.Error) else [str(error)]
    assert all(f"Errno {errno.ENOENT}]" in reason for reason in reasons), reasons


def assert_tensors(directory, expected):
    """The shards of a directory that nobody else changes have exactly these tensors."""
    found = {}
    for path in directory.glob("*.safetensors"):
        content = read_file(path)
        length = int.from_bytes(content[:8], "little")
        for name, entry in json.loads(content[8:8 + length]).items():
            if name not in ("__metadata__", "generation"):
                begin, end = entry["data_offsets"]
                assert name not in found, f"{name} is in two shards of {directory}"
                found[name] = content[8 + length + begin:8 + length + end]
    assert found.keys() == expected.keys(), directory
    for name, data in expected.items():
        assert found[name] == data, f"{name} of {directory}"


# ---- the driver meanwhile ----

def sample(mount, begin):
    """Seconds, and the driver's memory, descriptors and threads, and the store's disk blocks."""
    fields = dict(line.split(":", 1) for line in pathlib.Path(f"/proc/{mount.pid}/status").read_text().splitlines())
    return {"seconds": round(time.monotonic() - begin, 1), "rss": int(fields["VmRSS"].split()[0]) * KIB,
            "threads": int(fields["Threads"]), "descriptors": len(os.listdir(f"/proc/{mount.pid}/fd")),
            "disk": mount.disk()}


def opened(mount):
    """What the driver's descriptors are of; each of its threads keeps a pipe, and these do not count."""
    found = []
    for fd in os.listdir(f"/proc/{mount.pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/{mount.pid}/fd/{fd}"))
    return sorted(name for name in found if not name.startswith("pipe:"))


def keep(curve):
    if CURVE and curve:
        with open(CURVE, "w", newline="") as f:
            writer = csv.DictWriter(f, curve[0].keys())
            writer.writeheader()
            writer.writerows(curve)


def highest(curve, what):
    return max(point[what] for point in curve)


def known_to_the_kernel(mount):
    """Inodes that the driver keeps because the kernel knows them, once the kernel was asked to forget."""
    if os.geteuid() == 0:
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("2")
    return mount.status()["files"]


def run_load(mount, processes, seconds, seed):
    """The curve of the driver while the work goes on."""
    begin = time.monotonic()
    save(mount.dir / "current", 1)
    children = [Child(Worker(mount.dir, number, seed).run, begin + seconds) for number in range(processes)]
    curve = []
    while time.monotonic() < begin + seconds:
        time.sleep(min(1.0, seconds / 8))
        curve.append(sample(mount, begin))
        keep(curve)
    failed, done = [], {}
    for number, child in enumerate(children):
        try:
            for job, count in child.value().items():
                done[job] = done.get(job, 0) + count
        except AssertionError:
            failed.append(f"process {number}:\n{traceback.format_exc(limit=0)}")
    print(f"{processes} processes, {seconds:.0f} s, seed {seed}: {done}")
    assert not failed, "\n".join(failed)
    return curve, done


def check_load(mount, processes, seconds, seed):
    # What is there from the first file on belongs to the empty store: directories, pages of the database.
    write_file(mount.dir / "first", b"x" * 100_000)
    mount.wait_sealed()
    (mount.dir / "first").unlink()
    wait_for(lambda: known_to_the_kernel(mount) == 0, SETTLE, "no file is left in the store")
    mount.wait_sealed()
    empty, idle, files = mount.disk(), sample(mount, time.monotonic()), opened(mount)
    curve, done = run_load(mount, processes, seconds, seed)
    assert load(mount.dir / "current") is not None
    third = max(1, len(curve) // 3)
    early, late = curve[:third], curve[-third:]
    assert highest(late, "rss") <= 1.25 * highest(early, "rss") + GROWTH, (early, late)
    assert highest(late, "threads") <= highest(early, "threads") + SPARE
    shutil.rmtree(mount.dir / "current")
    assert os.listdir(mount.dir) == []
    mount.wait_sealed(SETTLE)
    wait_for(lambda: known_to_the_kernel(mount) == 0, SETTLE, "no file is left in the store")
    wait_for(lambda: mount.status()["objects"] == 0, SETTLE, "every object given back")
    mount.wait_disk(empty + EMPTY_AGAIN, SETTLE)
    end = sample(mount, time.monotonic())
    assert opened(mount) == files
    assert end["threads"] <= highest(early, "threads") + SPARE, (idle, end)
    assert end["rss"] <= 1.25 * highest(early, "rss") + GROWTH, (idle, end)
    print(f"idle {idle}, early {early[-1]}, late {late[-1]}, end {end}")
    return done


def test_mixed_work(mount):
    """Eight processes for a few seconds."""
    check_load(mount, 8, 4, SEED)


@pytest.mark.endurance
@pytest.mark.long
@pytest.mark.timeout(SECONDS * 2 + 600)
@pytest.mark.parametrize("options", [(), ("passthrough=off",)], ids=["default", "passthrough=off"])
def test_mixed_work_for_long(unmounted, options):
    """64 processes for minutes: every kind of work was done many times."""
    unmounted.mount(*options)
    done = check_load(unmounted, PROCESSES, SECONDS / 2, SEED)
    assert len(done) == 10 and min(done.values()) > 10, done
