"""Random operations on .tensors against a dictionary: the shards, the index and the views are those of what it has.

As test_model_based.py, and by its environment.
"""

import contextlib
import errno
import io
import json
import os
import pathlib
import shutil
import tempfile

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

np = pytest.importorskip("numpy")
safetensors_numpy = pytest.importorskip("safetensors.numpy")

from mount.test_model_based import BOTH, EXAMPLES, LIMIT, SEED, STEPS, run, settings_of
from support import shards
from support.files import errno_of, read_file, write_all, write_file
from support.mounts import Mount

ATTRIBUTE = "user.weightfs.max_shard_size"
NAMES = ["a", "b", "layer.0.weight", "a/b", "ü%"]
DTYPES = ["<f4", "<i8", "|u1", ">f4", "<f2"]
SIZES = ["100KB", "150KB", "1MB"]

name = st.sampled_from(NAMES)
form = st.sampled_from(["npy", "safetensors"])
where = st.sampled_from(["m", "n"])
array = st.builds(lambda value, size, dtype, fortran: np.full(size, value, dtype, order="F" if fortran else "C"),
                  st.integers(0, 100), st.sampled_from([(3,), (), (2, 3), (20_000,), (100, 300), (0, 4)]),
                  st.sampled_from(DTYPES), st.booleans())


def encoded(tensor, kind):
    return tensor.replace("%", "%25").replace("/", "%2F") + "." + kind


def written(value, kind):
    if kind == "safetensors":
        return safetensors_numpy.save({"x": stored(value)})
    out = io.BytesIO()
    np.save(out, value)
    return out.getvalue()


def stored(value):
    """As a shard has it: in C order, little-endian."""
    return np.array(value, value.dtype.newbyteorder("<"), order="C")


def same(left, right):
    return left.shape == right.shape and left.dtype == right.dtype.newbyteorder("<") and np.array_equal(left, right)


def loaded(directory):
    """{name: array} as the index of a directory, or the only shard, has it."""
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        path = directory / "model.safetensors"
        return safetensors_numpy.load(read_file(path)) if path.exists() else {}
    names = json.loads(read_file(index))["weight_map"]
    found = {file: safetensors_numpy.load(read_file(directory / file)) for file in set(names.values())}
    assert sum(len(tensors) for tensors in found.values()) == len(names), f"{directory}: a tensor twice, or left over"
    return {tensor: found[file][tensor] for tensor, file in names.items()}


class Tensors(RuleBasedStateMachine):
    environment = None

    def __init__(self):
        super().__init__()
        weightfs, base, watchdog, seconds, options = self.environment
        self.base = pathlib.Path(tempfile.mkdtemp(dir=base))
        self.m = Mount(weightfs, self.base, watchdog, seconds)
        self.m.mount(*options)
        self.has = {"m": {}, "n": {}}
        self.held = []  # a descriptor of a view, and what it reads
        for directory in self.has:
            (self.m.dir / directory).mkdir()

    def path(self, directory, tensor, kind):
        return self.m.dir / directory / ".tensors" / encoded(tensor, kind)

    # ---- writing ----

    @rule(directory=where, tensor=name, value=array, kind=form, truncate=st.booleans())
    def put(self, directory, tensor, value, kind, truncate):
        path = self.path(directory, tensor, kind)
        if truncate:
            write_file(path, written(value, kind))
        else:
            write_file(path.with_name(".tmp"), written(value, kind))
            os.rename(path.with_name(".tmp"), path)
        self.has[directory][tensor] = value

    @rule(directory=where, tensor=name, kind=form,
          content=st.sampled_from([b"", b"no tensor", b"\x93NUMPY\x01\x00\xff", shards.valid(1), bytes(100)]))
    def put_wrong(self, directory, tensor, kind, content):
        """EBADMSG at close, and all is as it was."""
        fd = os.open(self.path(directory, tensor, kind), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        write_all(fd, content)
        assert errno_of(os.close, fd) == errno.EBADMSG

    @rule(directory=where, tensor=name, kind=form, value=st.integers(0, 255))
    def change_in_place(self, directory, tensor, kind, value):
        """The last element by pwrite, through a descriptor that does not truncate."""
        have = self.has[directory].get(tensor)
        path = self.path(directory, tensor, kind)
        if have is None:
            assert errno_of(os.open, path, os.O_RDWR) == errno.ENOENT
        elif have.size:
            fd = os.open(path, os.O_RDWR)
            last = np.array([value], have.dtype.newbyteorder("<")).tobytes()
            os.pwrite(fd, last, os.fstat(fd).st_size - len(last))
            os.close(fd)
            changed = stored(have)
            changed.reshape(-1)[-1:] = value
            self.has[directory][tensor] = changed

    @rule(directory=where, tensor=name, onto=where, new=name, kind=form, other=form)
    def rename(self, directory, tensor, onto, new, kind, other):
        source, target = self.path(directory, tensor, kind), self.path(onto, new, other)
        mine, have = errno_of(os.rename, source, target), self.has[directory]
        if tensor not in have:
            assert mine == errno.ENOENT
        elif (directory, tensor) != (onto, new):
            assert mine == 0
            self.has[onto][new] = have.pop(tensor)
        else:
            assert mine in (0, errno.EINVAL, errno.EEXIST)

    @rule(directory=where, tensor=name, new=name, kind=form)
    def link(self, directory, tensor, new, kind):
        mine = errno_of(os.link, self.path(directory, tensor, kind), self.path(directory, new, kind))
        have = self.has[directory]
        if tensor not in have:
            assert mine == errno.ENOENT
        elif new in have:
            assert mine == errno.EEXIST
        else:
            assert mine == 0
            have[new] = have[tensor]

    @rule(directory=where, tensor=name, kind=form)
    def unlink(self, directory, tensor, kind):
        mine = errno_of(os.unlink, self.path(directory, tensor, kind))
        assert mine == (0 if tensor in self.has[directory] else errno.ENOENT)
        self.has[directory].pop(tensor, None)

    @rule(directory=where, size=st.sampled_from([None, *SIZES]))
    def limit(self, directory, size):
        path = self.m.dir / directory
        if size:
            os.setxattr(path, ATTRIBUTE, size.encode())
        else:
            assert errno_of(os.removexattr, path, ATTRIBUTE) in (0, errno.ENODATA)

    @rule(directory=where, tensors=st.dictionaries(name, array, max_size=3))
    def save(self, directory, tensors):
        """Another saver: the model is what it wrote."""
        path = self.m.dir / directory
        for old in list(path.iterdir()):
            old.unlink()
        values = {tensor: stored(value) for tensor, value in tensors.items()}
        write_file(path / ".tmp", safetensors_numpy.save(values, metadata={"format": "pt"}))
        os.rename(path / ".tmp", path / "model.safetensors")
        self.has[directory] = values

    @rule(source=where)
    def copy(self, source):
        """cp -r of one model over the other."""
        onto = "n" if source == "m" else "m"
        limit = None
        with contextlib.suppress(OSError):
            limit = os.getxattr(self.m.dir / onto, ATTRIBUTE)
        shutil.rmtree(self.m.dir / onto)
        shutil.copytree(self.m.dir / source, self.m.dir / onto, copy_function=shutil.copy)
        if limit:
            os.setxattr(self.m.dir / onto, ATTRIBUTE, limit)
        self.has[onto] = dict(self.has[source])

    # ---- reading ----

    @rule(directory=where)
    def check_shards(self, directory):
        self.check(loaded(self.m.dir / directory), directory)

    @rule(directory=where)
    def check_listing(self, directory):
        kinds = [encoded(tensor, "npy") for tensor in self.has[directory]]
        assert sorted(os.listdir(self.m.dir / directory / ".tensors")) == sorted(kinds)

    @rule(directory=where, tensor=name, kind=form)
    def check_tensor(self, directory, tensor, kind):
        path, value = self.path(directory, tensor, kind), self.has[directory].get(tensor)
        if value is None:
            assert errno_of(os.stat, path) == errno.ENOENT
            return
        content = read_file(path)
        assert os.stat(path).st_size == len(content)
        found = np.load(io.BytesIO(content)) if kind == "npy" else safetensors_numpy.load(content)[tensor]
        assert same(found, value)

    @rule(directory=where, size=st.sampled_from(["single", *SIZES]))
    def check_cut(self, directory, size):
        if self.has[directory]:
            view = self.m.dir / directory / ".shards" / size
            assert errno_of(os.open, view / "model.safetensors", os.O_WRONLY | os.O_CREAT) == errno.EROFS
            self.check(loaded(view), directory)

    def check(self, found, directory):
        have = self.has[directory]
        assert found.keys() == have.keys(), f"{directory}: {sorted(found)}, not {sorted(have)}"
        for tensor, value in have.items():
            assert same(found[tensor], value), f"{tensor} of {directory}"

    @precondition(lambda self: len(self.held) < 3)
    @rule(directory=where, tensor=name, kind=form)
    def hold(self, directory, tensor, kind):
        """Who has one open reads the same bytes to the end."""
        if tensor in self.has[directory]:
            f = open(self.path(directory, tensor, kind), "rb", buffering=0)
            self.held.append((f, os.pread(f.fileno(), 1 << 20, 0)))

    @rule()
    def check_held(self):
        for f, content in self.held:
            assert os.pread(f.fileno(), 1 << 20, 0) == content

    # ---- the life of the store ----

    def let_go(self):
        self.check_held()
        while self.held:
            self.held.pop()[0].close()

    @rule()
    def seal(self):
        self.let_go()
        self.m.wait_sealed()

    @rule()
    def remount(self):
        self.let_go()
        self.m.remount()

    @rule()
    def kill(self):
        self.let_go()
        self.m.kill()
        self.m.mount(*self.m.options)

    @rule()
    def drop_caches(self):
        if os.geteuid() == 0:
            pathlib.Path("/proc/sys/vm/drop_caches").write_text("2")

    @rule(directory=where)
    def repack(self, directory):
        self.m.run("repack", self.m.dir / directory, check=False)

    def teardown(self):
        try:
            if self.m.pid:
                self.let_go()
                for settle in (lambda: None, self.m.wait_sealed, self.m.remount):
                    settle()
                    for directory in self.has:
                        self.check_shards(directory)
                        self.check_listing(directory)
                self.m.umount()
                self.m.assert_clean()
        finally:
            for f, _ in self.held:
                f.close()
            self.m.end()
            shutil.rmtree(self.base, ignore_errors=True)


@BOTH
def test_as_a_dictionary(weightfs, watchdog, tmp_path, options):
    """A few sequences, the same ones each time."""
    run(Tensors, weightfs, tmp_path, watchdog, options, settings_of(3, 20, derandomize=True))


@pytest.mark.endurance
@pytest.mark.long
@pytest.mark.timeout(LIMIT)
@BOTH
def test_as_a_dictionary_for_long(weightfs, watchdog, tmp_path, options):
    """Many long sequences of a new seed."""
    print(f"WEIGHTFS_MODEL_SEED={SEED}, {EXAMPLES} sequences of {STEPS} operations")
    run(Tensors, weightfs, tmp_path, watchdog, options, settings_of(EXAMPLES, STEPS), SEED)
