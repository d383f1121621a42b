"""Views give the right bytes: of each dtype and name, at every offset, by every way to read.

What is expected is put together here from the format's rules, and checked with Python's safetensors
and NumPy.
"""

import ast
import concurrent.futures
import errno
import functools
import io
import json
import mmap
import os
import random
import subprocess

import pytest

np = pytest.importorskip("numpy")
safetensors = pytest.importorskip("safetensors")

from support import shards
from support.files import MIB, errno_of, random_bytes, read_file, write_file
from support.mounts import SETTLES

# In the order of the Rust enum, with the bits of an element and NumPy's name.
DTYPES = {
    "BOOL": (8, "|b1"), "F4": (4, None), "F6_E2M3": (6, None), "F6_E3M2": (6, None), "U8": (8, "|u1"),
    "I8": (8, "|i1"), "F8_E5M2": (8, None), "F8_E4M3": (8, None), "F8_E8M0": (8, None),
    "F8_E4M3FNUZ": (8, None), "F8_E5M2FNUZ": (8, None), "I16": (16, "<i2"), "U16": (16, "<u2"),
    "F16": (16, "<f2"), "BF16": (16, None), "I32": (32, "<i4"), "U32": (32, "<u4"), "F32": (32, "<f4"),
    "C64": (64, "<c8"), "F64": (64, "<f8"), "I64": (64, "<i8"), "U64": (64, "<u8"),
}
ORDER = list(DTYPES)
SHAPES = [(), (8,), (0,), (2, 4), (0, 3), (3, 0, 2**40), (2, 1, 1, 4, 2)]
SIZES = {"1": 1, "1000": 1000, "64KiB": 65536, "100KB": 10**5, "1.5MB": 1_500_000, "5GB": 5 * 10**9, "single": 2**63}
METADATA = {"format": "pt", "two": "ünd \" \n\x01"}


class Tensor:
    """A tensor of random bytes."""

    def __init__(self, name, dtype, shape, seed=0):
        self.name, self.dtype, self.shape = name, dtype, list(shape)
        bits = functools.reduce(int.__mul__, self.shape, DTYPES[dtype][0])
        assert bits % 8 == 0
        self.data = random_bytes(seed, bits // 8)
        if dtype == "BOOL":
            self.data = bytes(byte & 1 for byte in self.data)

    @property
    def numpy(self):
        return DTYPES[self.dtype][1]

    def array(self):
        return np.frombuffer(self.data, self.numpy).reshape(self.shape)

    def npy(self):
        """What numpy.save writes."""
        out = io.BytesIO()
        np.save(out, self.array())
        return out.getvalue()


def build(tensors, metadata=None):
    """The file that safetensors writes of these tensors."""
    header, at, data = ({"__metadata__": metadata} if metadata else {}), 0, b""
    for t in sorted(tensors, key=lambda t: (-ORDER.index(t.dtype), t.name.encode())):
        header[t.name] = {"dtype": t.dtype, "shape": t.shape, "data_offsets": [at, at + len(t.data)]}
        at += len(t.data)
        data += t.data
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return shards.raw(text + b" " * (-len(text) % 8), data)


def in_file_order(files):
    """The tensors of several files, each a list, as their bytes stand."""
    return [t for tensors in files
            for t in sorted(tensors, key=lambda t: (-ORDER.index(t.dtype), t.name.encode()))]


def plan(tensors, largest):
    """huggingface_hub's: one that is too large is alone, before the shard that is open."""
    closed, current, size = [], [], 0
    for t in tensors:
        if len(t.data) > largest:
            closed.append([t])
            continue
        if size + len(t.data) > largest:
            closed.append(current)
            current, size = [], 0
        current.append(t)
        size += len(t.data)
    return closed + ([current] if current else [])


def cut(tensors, largest, metadata=None, base="model"):
    """{name: bytes} of a view of these tensors, given in file order."""
    parts = plan(tensors, largest)
    if len(parts) == 1:
        return {f"{base}.safetensors": build(parts[0], metadata)}
    names = [f"{base}-{number:05d}-of-{len(parts):05d}.safetensors" for number in range(1, len(parts) + 1)]
    found = {name: build(part, metadata) for name, part in zip(names, parts)}
    index = {"metadata": {"total_size": sum(len(t.data) for t in tensors),
                          "total_parameters": sum(len(t.data) * 8 // DTYPES[t.dtype][0] for t in tensors)},
             "weight_map": {t.name: name for name, part in zip(names, parts) for t in part}}
    found[f"{base}.safetensors.index.json"] = (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()
    return found


def encoded(name):
    return name.replace("%", "%25").replace("/", "%2F").replace("\0", "%00")


def natural(tensor):
    """The name of its file in a listing."""
    return encoded(tensor.name) + (".npy" if tensor.numpy else ".safetensors")


def read_all(directory):
    return {name: read_file(directory / name) for name in os.listdir(directory)}


def assert_shown(mount, files, metadata):
    """Each tensor's files, and the cuts of every size, are as expected."""
    tensors = in_file_order(files)
    shown = mount.dir / ".tensors"
    assert sorted(os.listdir(shown)) == sorted(map(natural, tensors))
    for t in tensors:
        assert read_file(shown / f"{encoded(t.name)}.safetensors") == build([t]), t.name
        if t.numpy:
            assert read_file(shown / f"{encoded(t.name)}.npy") == t.npy(), t.name
        else:
            assert errno_of(os.stat, shown / f"{encoded(t.name)}.npy") == errno.ENOENT
    for size, largest in SIZES.items():
        assert read_all(mount.dir / ".shards" / size) == cut(tensors, largest, metadata), size


# ---- what there can be ----


def test_every_dtype(mount):
    """The 22 dtypes, scalars and empty ones with them: each file, its attributes, and all cuts."""
    tensors = [Tensor(f"{dtype}.{'x'.join(map(str, shape))}", dtype, shape, number)
               for dtype in DTYPES for number, shape in enumerate(SHAPES)
               if functools.reduce(int.__mul__, shape, DTYPES[dtype][0]) % 8 == 0]
    assert {t.dtype for t in tensors} == set(DTYPES)
    content = build(tensors, METADATA)
    # Python's safetensors reads what is expected here; its writer knows neither F6 nor METADATA's order.
    assert {name: bytes(of["data"]) for name, of in safetensors.deserialize(content)} == {
        t.name: t.data for t in tensors}
    write_file(mount.dir / "model.safetensors", content)
    assert_shown(mount, [tensors], METADATA)
    shown = mount.dir / ".tensors"
    for t in tensors:
        path = shown / natural(t)
        values = {name: os.getxattr(path, name).decode() for name in os.listxattr(path)}
        digest = values.pop("user.weightfs.digest", None)
        assert values == {"user.weightfs.dtype": t.dtype, "user.weightfs.shape": str(t.shape),
                          "user.weightfs.shard": "model.safetensors"}
        assert (digest or "").startswith("xxh3:") == bool(t.data)
        if t.numpy and t.data:
            assert np.array_equal(np.load(path, mmap_mode="r"), t.array(), equal_nan=t.dtype != "BOOL")
        elif t.numpy:
            assert np.load(path).shape == tuple(t.shape)
        with safetensors.safe_open(shown / f"{t.name}.safetensors", "np") as f:
            assert (list(f.keys()), f.get_slice(t.name).get_shape()) == ([t.name], t.shape)
    mount.remount()
    assert_shown(mount, [tensors], METADATA)


NAMES = ["a/b.c", "/", "%", "%2F", "a%2fb", "%25", "%00", "a\0b", "", ".", "..", "...", " a b ", "ünï✓😀", "new\nline",
         "\\", "*?[x]", "-rf", "a" * 200, "x.npy", "x.safetensors", "x.npy.safetensors", "é" * 120, "A", "a",
         "__metadata", "model.layers.0.mlp.down_proj.weight", "\x7f", "\x01", "~", "con", "name\u2028line"]


def test_names(mount):
    """Any name: a file of its own, found again by it; the cuts and the index have it as it is."""
    tensors = [Tensor(name, "U8", [number + 1], number) for number, name in enumerate(NAMES)]
    tensors += [Tensor("b" + name, "BF16", [3], number) for number, name in enumerate(NAMES) if name != "é" * 120]
    write_file(mount.dir / "model.safetensors", build(tensors))
    assert_shown(mount, [tensors], None)


def test_names_that_are_too_long(mount):
    """They are in no listing and cannot be opened; the rest of the model is there, and the cuts have all."""
    longest = {"n" * 251: "U8", "/" * 83 + "xx": "U8", "n" * 243: "BF16"}
    too_long = {"n" * 252: "U8", "/" * 84: "U8", "m" * 244: "BF16", "w" * 5000: "F32", "%" * 2000: "F32"}
    assert all(len(natural(Tensor(name, dtype, [1]))) == 255 for name, dtype in longest.items())
    tensors = [Tensor(name, dtype, [2], seed) for seed, (name, dtype) in enumerate((longest | too_long).items())]
    write_file(mount.dir / "model.safetensors", build(tensors))
    shown = mount.dir / ".tensors"
    assert sorted(os.listdir(shown)) == sorted(natural(t) for t in tensors if t.name in longest)
    for t in tensors:
        if t.name in longest:
            assert len(read_file(shown / natural(t))) > len(t.data)
    for size, largest in SIZES.items():
        assert read_all(mount.dir / ".shards" / size) == cut(in_file_order([tensors]), largest), size


@pytest.mark.parametrize("length", [256, 300, 1000])
def test_long_names_are_looked_for(mount, length):
    """A name that is longer than a file's can be is ENAMETOOLONG or ENOENT wherever it is looked for."""
    write_file(mount.dir / "model.safetensors", shards.valid())
    for directory in (".tensors", ".tensors@v", ".shards", ".shards/single"):
        for suffix in ("", ".npy", ".safetensors"):
            path = mount.dir / directory / ("n" * (length - len(suffix)) + suffix)
            assert errno_of(os.stat, path) in (errno.ENAMETOOLONG, errno.ENOENT)
    assert errno_of(os.stat, mount.dir / (".tensors@" + "v" * length)) in (errno.ENAMETOOLONG, errno.ENOENT)
    assert sorted(os.listdir(mount.dir / ".tensors")) == ["a.npy", "b.npy"]


def test_odd_headers(mount):
    """Unsorted, unaligned, unpadded, with 70 dimensions, with keys in any order: views are as safetensors writes."""
    deep = Tensor("deep", "F32", [1] * 65, 1)
    header = {"z": {"shape": [3], "data_offsets": [0, 3], "dtype": "U8"},
              "f": {"dtype": "F32", "shape": [2, 1], "data_offsets": [3, 11]},
              "deep": {"dtype": "F32", "shape": [1] * 65, "data_offsets": [11, 15]},
              "a": {"dtype": "F64", "shape": [1], "data_offsets": [15, 23]},
              "none": {"dtype": "F64", "shape": [0], "data_offsets": [15, 15]}}
    data = random_bytes(3, 23)
    write_file(mount.dir / "model.safetensors", shards.raw(json.dumps(header, indent=1), data))
    tensors = {name: Tensor(name, of["dtype"], of["shape"]) for name, of in header.items()}
    for name, t in tensors.items():
        t.data = data[slice(*header[name]["data_offsets"])]
    order = [tensors[name] for name in ("z", "f", "deep", "none", "a")]
    assert sorted(os.listdir(mount.dir / ".tensors")) == ["a.npy", "deep.safetensors", "f.npy", "none.npy", "z.npy"]
    for t in order:
        assert read_file(mount.dir / ".tensors" / f"{t.name}.safetensors") == build([t])
        if t.name != "deep":
            assert read_file(mount.dir / ".tensors" / f"{t.name}.npy") == t.npy()
    assert errno_of(os.stat, mount.dir / ".tensors/deep.npy") == errno.ENOENT  # NumPy has 64 dimensions at most
    assert os.getxattr(mount.dir / ".tensors/deep.safetensors", "user.weightfs.shape") == str(deep.shape).encode()
    for size, largest in SIZES.items():
        assert read_all(mount.dir / ".shards" / size) == cut(order, largest), size


def test_several_shards(mount):
    """Three shards of many dtypes, with metadata: tensors in file order, metadata of the first that has the key."""
    files = [[Tensor(f"{number}.{k}", random.Random(number * 9 + k).choice(ORDER), [k, 8], k) for k in range(9)]
             for number in range(3)]
    metadata = [{"format": "pt", "a": "1"}, None, {"a": "2", "b": "3"}]
    for number, (tensors, each) in enumerate(zip(files, metadata), 1):
        write_file(mount.dir / f"model-{number:05d}-of-00003.safetensors", build(tensors, each))
    assert_shown(mount, files, {"format": "pt", "a": "1", "b": "3"})


# ---- every way to read ----

TENSOR = 1_200_007  # bytes, no multiple of anything


@pytest.fixture
def composed(request, unmounted):
    """A model of two shards, the first one a fine-tune that shares tensors with a file elsewhere; its tensors."""
    mount = unmounted.mount(*getattr(request, "param", []))
    base = [Tensor(name, "U8", [TENSOR], seed) for seed, name in enumerate("abcd")]
    tuned = [Tensor(t.name, "U8", [TENSOR], seed + 10 * (t.name in "bd")) for seed, t in enumerate(base)]
    other = [Tensor(name, "U8", [size], size) for name, size in (("e", 77), ("f", MIB), ("g", 5), ("h", 70_001))]
    write_file(mount.dir / "base.bin.safetensors", build(base))
    mount.wait_sealed()
    (mount.dir / "model").mkdir()
    for number, tensors in enumerate((tuned, other), 1):
        write_file(mount.dir / f"model/model-{number:05d}-of-00002.safetensors", build(tensors))
    mount.tensors = in_file_order([tuned, other])
    return mount


def boundaries(content):
    """Where pieces begin and end, in a safetensors file or an array's."""
    if content[:6] == b"\x93NUMPY":
        return [0, 128, len(content)]
    return shards.boundaries(content) if content[:1] != b"{" else [0, len(content)]


def around(content):
    """(offset, length) of reads at odd places around every boundary."""
    for at in boundaries(content):
        for before in (0, 1, 7, 4095, 4096, 70_003):
            for length in (1, 2, 8, 4096, 4097, 131_072, 140_010):
                if 0 <= at - before <= len(content):
                    yield at - before, length


def drop_pages(fd):
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def assert_reads(path, content):
    """The whole, and around every boundary: through the cache, with an empty cache, by O_DIRECT."""
    assert read_file(path) == content
    assert os.stat(path).st_size == len(content)
    buffered, direct = os.open(path, os.O_RDONLY), os.open(path, os.O_RDONLY | os.O_DIRECT)
    for number, (at, length) in enumerate(around(content)):
        if number % 8 == 0:
            drop_pages(buffered)
        for fd in (buffered, direct):
            assert os.pread(fd, length, at) == content[at:at + length], (path, at, length)
    assert os.pread(buffered, 10, len(content)) == os.pread(direct, 10, len(content) + 5) == b""
    assert os.lseek(buffered, 5, os.SEEK_DATA) == 5
    assert os.lseek(buffered, 5, os.SEEK_HOLE) == len(content)
    assert errno_of(os.lseek, buffered, len(content), os.SEEK_DATA) == errno.ENXIO
    os.close(buffered)
    os.close(direct)


either_way = pytest.mark.parametrize("composed", [[], ["passthrough=off"]], indirect=True, ids=["default", "off"])


@either_way
@pytest.mark.parametrize("how", SETTLES)
def test_reads_around_boundaries(composed, how):
    """A composed shard beside a whole one, cut anew: right at every odd offset, whatever the state."""
    mount, model = composed, composed.dir / "model"
    mount.settle(how)
    for name in ("b", "e", "f"):
        t = next(t for t in mount.tensors if t.name == name)
        assert_reads(model / f".tensors/{name}.npy", t.npy())
        assert_reads(model / f".tensors/{name}.safetensors", build([t]))
    for size in ("2500000", "single"):
        expected = cut(mount.tensors, int(size) if size != "single" else 2**63)
        assert sorted(os.listdir(model / ".shards" / size)) == sorted(expected)
        for name, content in expected.items():
            assert_reads(model / ".shards" / size / name, content)


@either_way
def test_mapped_by_threads(composed):
    """32 threads read one file by mapping, and 32 others by a descriptor each; nothing was read before."""
    mount = composed
    mount.remount()
    path, content = mount.dir / "model/.shards/single/model.safetensors", cut(mount.tensors, 2**63)["model.safetensors"]
    with open(path, "rb") as f:
        mapping = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)

    def walk(number):
        pages = list(range(0, len(content), 4096))
        random.Random(number).shuffle(pages)
        return [at for at in pages[:400] if mapping[at:at + 4096] != content[at:at + 4096]]

    def read(number):
        with open(path, "rb", buffering=0) as f:
            return [at for at in range(number * 997, len(content), 32 * 9973)
                    if os.pread(f.fileno(), 5000, at) != content[at:at + 5000]]

    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        jobs = [pool.submit(function, number) for number in range(32) for function in (walk, read)]
        assert [job.result() for job in jobs] == [[]] * 64
    mapping.close()


def test_copied_by_kernel(composed, plain):
    """cp, sendfile and copy_file_range out of views: to the disk, and to the mount itself, where all is shared."""
    mount, model = composed, composed.dir / "model"
    before = mount.wait_sealed()["stored_bytes"]
    expected = cut(mount.tensors, 10**6)
    for target in (plain / "copy", mount.dir / "copy"):
        subprocess.run(["cp", "-r", "--no-preserve=mode", model / ".shards/1MB", target], check=True)
        assert read_all(target) == expected
        name = max(expected)
        with open(model / ".shards/1MB" / name, "rb") as f, open(target / "sent", "wb") as g:
            assert os.sendfile(g.fileno(), f.fileno(), 3, 2**30) == len(expected[name]) - 3
            at = 0
            while target.is_relative_to(mount.dir) and (n := os.copy_file_range(f.fileno(), g.fileno(), 2**30, at)):
                at += n
        assert read_file(target / "sent") == expected[name][3:] + expected[name][:at]
        os.unlink(target / "sent")
    assert at == len(expected[name])
    assert mount.wait_sealed()["stored_bytes"] < before + 20_000  # headers
    assert read_all(mount.dir / "copy") == expected


def test_arrays_mapped_by_numpy(composed):
    """numpy.load(mmap_mode="r") of each tensor: equal; the header is a literal that Python reads."""
    shown = composed.dir / "model/.tensors"
    for t in composed.tensors:
        found = np.load(shown / f"{t.name}.npy", mmap_mode="r")
        assert isinstance(found, np.memmap) and np.array_equal(found, t.array())
        with open(shown / f"{t.name}.npy", "rb") as f:
            assert ast.literal_eval(f.read(128)[10:].decode()) == {
                "descr": t.numpy, "fortran_order": False, "shape": tuple(t.shape)}
