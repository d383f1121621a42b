"""What is written to .tensors and is no tensor: EBADMSG at close, a reason to be read, and the model as it was.

    WEIGHTFS_TENSOR_SEEDS    seeds of the mutations, comma-separated (default: one)
    WEIGHTFS_TENSOR_INPUTS   mutations for each seed (default 400)

NumPy says of a mutated array, and Python's safetensors of a mutated file, whether it is one.
"""

import errno
import io
import json
import os
import random
import struct

import pytest

np = pytest.importorskip("numpy")
safetensors = pytest.importorskip("safetensors")
pytest.importorskip("safetensors.numpy")

from support import shards
from support.files import errno_of, random_bytes, tree_hashes, write_file
from support.tensors import npy

SEEDS = [int(seed) for seed in os.environ.get("WEIGHTFS_TENSOR_SEEDS", "1").split(",")]
INPUTS = int(os.environ.get("WEIGHTFS_TENSOR_INPUTS", "400"))

# NumPy's names of the dtypes that it shares with safetensors.
BOTH = {"?": "BOOL", "u1": "U8", "i1": "I8", "i2": "I16", "u2": "U16", "f2": "F16", "i4": "I32", "u4": "U32",
        "f4": "F32", "c8": "C64", "f8": "F64", "i8": "I64", "u8": "U64"}
BITS = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8,
        "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32,
        "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64}
SHAPES = [(), (8,), (0,), (2, 4), (4, 0, 3), (2, 3, 2, 4), (1,) * 32]


def header(text, data=b"", version=(1, 0)):
    """An .npy file of this header, as it stands."""
    text = text.encode() if isinstance(text, str) else text
    length = struct.pack("<H" if version[0] == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text + data


def says(descr="'<f4'", order="False", shape="(2,)"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


def one_tensor(dtype, shape, data, name="any"):
    entry = {"dtype": dtype, "shape": list(shape), "data_offsets": [0, len(data)]}
    text = json.dumps({name: entry}, separators=(",", ":"))
    return shards.raw(text + " " * (-len(text.encode()) % 8), data)


def contents(directory):
    """{name: (dtype, shape, bytes)} of the only shard."""
    path = directory / "model.safetensors"
    if not path.exists():
        return {}
    return {name: (of["dtype"], tuple(of["shape"]), bytes(of["data"]))
            for name, of in safetensors.deserialize(path.read_bytes())}


@pytest.fixture
def directory(mount):
    """A model with one tensor."""
    made = mount.dir / "m"
    made.mkdir()
    np.save(made / ".tensors/kept.npy", np.arange(10, dtype="<f4"))
    return made


def reasons(directory):
    """{file: reason} as .tensors says."""
    try:
        text = os.getxattr(directory / ".tensors", "user.weightfs.error").decode(errors="surrogateescape")
    except OSError as error:
        assert error.errno == errno.ENODATA
        return {}
    return dict(line.split(": ", 1) for line in text.split("\n"))


def assert_refused(directory, name, content):
    before = tree_hashes(directory)
    assert errno_of(write_file, directory / ".tensors" / name, content) == errno.EBADMSG, content[:100]
    assert len(reasons(directory)[name].split(": ", 1)[1]) > 5
    assert not (directory / ".tensors" / name).exists() or name.startswith("kept")
    assert tree_hashes(directory) == before


# ---- what is right ----


def test_every_array(directory):
    """Each dtype, in both byte orders, C and Fortran order, of each shape, by each version of the format."""
    expected = {}
    for number, (code, dtype) in enumerate(BOTH.items()):
        for shape in SHAPES:
            for order in "<>":
                for layout in "CF":
                    version = [None, (1, 0), (2, 0), (3, 0)][len(expected) % 4]
                    array = np.frombuffer(random_bytes(number, 8 * 48), f"{order}{code}")
                    if code == "?":
                        array = np.frombuffer(random_bytes(number, 48), "u1") % 2 == 1
                    array = np.resize(array, shape).copy(order=layout)
                    name = f"{dtype}.{'x'.join(map(str, shape))}{order}{layout}"
                    write_file(directory / f".tensors/{name}.npy", npy(array, version))
                    plain = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"))
                    expected[name] = dtype, shape, plain.tobytes()
    found = contents(directory)
    found.pop("kept")
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
    for name, (_, shape, _) in expected.items():
        assert np.load(directory / f".tensors/{name}.npy").shape == shape


def test_every_safetensors(directory):
    """All 22 dtypes of each shape that is a number of bytes, by files of one tensor of another name."""
    expected = {}
    for number, (dtype, bits) in enumerate(BITS.items()):
        for shape in SHAPES + [(2**40, 0)]:
            size, rest = divmod(int(np.prod([*shape], dtype=object)) * bits if shape else bits, 8)
            if rest == 0:
                name = f"{dtype}.{'x'.join(map(str, shape))}"
                data = random_bytes(number, size)
                if dtype == "BOOL":
                    data = bytes(byte & 1 for byte in data)
                write_file(directory / f".tensors/{name}.safetensors", one_tensor(dtype, shape, data))
                expected[name] = dtype, shape, data
    found = contents(directory)
    found.pop("kept")
    assert found == expected


def test_large_sizes_of_empty_tensors(directory):
    """A shape is a list of numbers below 2^64; where one of them is 0, the others may be anything."""
    for name, shape in {"a": [2**63, 0], "b": [0, 2**64 - 1], "c": [2**63 - 1, 0]}.items():
        write_file(directory / f".tensors/{name}.safetensors", one_tensor("F32", shape, b""))
    assert {name: shape for name, (_, shape, _) in contents(directory).items()} == {
        "kept": (10,), "a": (2**63, 0), "b": (0, 2**64 - 1), "c": (2**63 - 1, 0)}


NAMES = ["a/b.c", "/", "%", "%2F", "a%2fb", "a\0b", "", ".", "..", " a b ", "ünï✓😀", "new\nline", "*?[x]", "-rf",
         "a" * 200, "x.npy", "x.npy.safetensors", "é" * 120, "A", "a", "__metadata", "\x7f",
         "\\", '"', "😀" * 50, "n" * 251]


def test_names(directory):
    """Any name that a file can have, '/', '%' and NUL encoded."""
    for number, name in enumerate(NAMES):
        encoded = name.replace("%", "%25").replace("/", "%2F").replace("\0", "%00")
        write_file(directory / f".tensors/{encoded}.npy", npy(np.full(3, number, "<i4")))
    found = contents(directory)
    assert {name: found[name][2] for name in NAMES} == {
        name: np.full(3, number, "<i4").tobytes() for number, name in enumerate(NAMES)}
    assert len(found) == len(os.listdir(directory / ".tensors")) == len(NAMES) + 1


def test_names_that_are_none(directory):
    right = npy(np.zeros(3, "<f4"))
    before = tree_hashes(directory)
    assert errno_of(write_file, directory / f".tensors/{'n' * 252}.npy", right) == errno.ENAMETOOLONG
    assert_refused(directory, "__metadata__.npy", right)
    assert_refused(directory, os.fsdecode(b"\xff\xfe.npy"), right)
    assert_refused(directory, os.fsdecode(b"\xed\xa0\x80.npy"), right)
    assert {name: reason.split(": ")[0] for name, reason in reasons(directory).items()} == {
        "__metadata__.npy": "tensor-name", "\udcff\udcfe.npy": "tensor-name", "\udced\udca0\udc80.npy": "tensor-name"}
    assert tree_hashes(directory) == before


# ---- what is wrong ----

EIGHT = b"\0" * 8
WRONG_ARRAYS = {
    "empty": b"",
    "magic-cut": b"\x93NUM",
    "magic-alone": b"\x93NUMPY\1\0",
    "other-file": b"PK\3\4" + b"\0" * 100,
    "version-0": header(says(), EIGHT, (0, 1)),
    "version-4": header(says(), EIGHT, (4, 0)),
    "header-cut": header(says(), EIGHT)[:40],
    "header-long": b"\x93NUMPY\2\0\xff\xff\xff\xff{",
    "header-code": header("__import__('os').system('true')\n", EIGHT),
    "header-list": header("[1, 2]\n", EIGHT),
    "header-empty": header("", EIGHT),
    "header-not-utf8": header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), '\xff': 1}\n", EIGHT, (3, 0)),
    "header-deep": header("(" * 10_000 + ")" * 10_000, EIGHT),
    "header-open": header("{'descr': '<f4', 'fortran_order': False, 'shape': (2,\n", EIGHT),
    "key-missing": header("{'descr': '<f4', 'shape': (2,), }\n", EIGHT),
    "key-more": header("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'x': 1, }\n", EIGHT),
    "order-number": header(says(order="0"), EIGHT),
    "shape-number": header(says(shape="2"), EIGHT),
    "shape-list": header(says(shape="[2]"), EIGHT),
    "shape-negative": header(says(shape="(-2,)"), EIGHT),
    "shape-float": header(says(shape="(2.0,)"), EIGHT),
    "shape-overflow": header(says(shape="(4611686018427387904, 4)"), EIGHT),
    "shape-huge": header(says(shape="(" + "9" * 400 + ",)"), EIGHT),
    "shape-65-dims": header(says(shape="(" + "1, " * 65 + ")"), b"\0" * 4),
    "descr-object": npy(np.array([1, None], object)),
    "descr-structured": npy(np.zeros(2, [("a", "<f4"), ("b", "<i4")])),
    "descr-unicode": npy(np.array(["ab"])),
    "descr-bytes": npy(np.array([b"ab"])),
    "descr-void": npy(np.zeros(2, "V8")),
    "descr-complex128": npy(np.zeros(2, "c16")),
    "descr-longdouble": npy(np.zeros(2, "g")),
    "descr-datetime": npy(np.zeros(2, "<M8[s]")),
    "descr-nothing": header(says(descr="''"), EIGHT),
    "descr-f3": header(says(descr="'<f3'"), EIGHT),
    "descr-sub-array": header(says(descr="('<f4', (2,))"), EIGHT * 2),
    "data-missing": header(says()),
    "data-short": header(says(), EIGHT[:7]),
    "data-long": header(says(), EIGHT + b"\n"),
    "two-arrays": npy(np.zeros(2, "<f4")) * 2,
    "fortran-short": header(says(order="True", shape="(2, 2)"), EIGHT),
    "npz": b"PK\5\6" + b"\0" * 18,
    "a-shard": shards.valid(),
}
WRONG_FILES = {case.name: case.content for case in shards.WRONG + shards.INCOMPLETE + shards.OPAQUE} | {
    "no-tensor": shards.raw("{}      "),
    "metadata-alone": shards.raw('{"__metadata__":{"format":"pt"}}'),
    "two-tensors": shards.valid(),
    "an-array": npy(np.zeros(2, "<f4")),
}


@pytest.mark.parametrize("how", ["close", "rename", "in-shard", "waiting"])
def test_wrong_content(directory, how):
    """By a close, by the rename of a temporary file, over a tensor that waits, and over one in a shard."""
    cases = [(f"{name}.npy", content) for name, content in WRONG_ARRAYS.items()]
    cases += [(f"{name}.safetensors", content) for name, content in WRONG_FILES.items()]
    for name, content in cases:
        if how == "close":
            assert_refused(directory, name, content)
        elif how == "rename":
            before = tree_hashes(directory)
            write_file(directory / ".tensors/.tmp", content)
            target = directory / ".tensors" / name
            assert errno_of(os.rename, directory / ".tensors/.tmp", target) == errno.EBADMSG, name
            assert name in reasons(directory)
            assert tree_hashes(directory) == before
        else:
            suffix = name.rsplit(".", 1)[1]
            if how == "waiting":
                np.save(directory / ".tensors/kept.npy", np.arange(10, dtype="<f4"))
            else:
                os.listdir(directory)
            assert errno_of(write_file, directory / f".tensors/kept.{suffix}", content) == errno.EBADMSG, name
            assert contents(directory) == {"kept": ("F32", (10,), np.arange(10, dtype="<f4").tobytes())}, name
            np.save(directory / ".tensors/kept.npy", np.arange(10, dtype="<f4"))
            assert not any(file.startswith("kept.npy") for file in reasons(directory))


def test_refused_is_not_there(directory):
    """As soon as the close has failed; another descriptor of the file may go on to write it, and close it well."""
    path = directory / ".tensors/new.npy"
    content = npy(np.arange(10, dtype="<f4"))
    first = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    second = os.dup(first)
    os.write(first, content[:100])
    assert errno_of(os.close, first) == errno.EBADMSG
    assert not path.exists() and os.listdir(directory / ".tensors") == ["kept.npy"]
    assert errno_of(os.unlink, path) == errno.ENOENT
    os.write(second, content[100:])
    os.close(second)
    assert np.array_equal(np.load(path), np.arange(10, dtype="<f4"))


def test_refused_is_made_anew(directory):
    """While another descriptor still has the file that was refused."""
    path = directory / ".tensors/new.npy"
    first = os.open(path, os.O_WRONLY | os.O_CREAT)
    second = os.dup(first)
    os.write(first, b"no array")
    assert errno_of(os.close, first) == errno.EBADMSG
    np.save(path, np.ones(3, "<f4"))
    errno_of(os.close, second)
    assert np.array_equal(np.load(path), np.ones(3, "<f4"))


def test_cut_in_place(directory):
    """truncate(2) of a tensor that waits, and of one in a shard: refused, or the old one stays."""
    for look in (False, True):
        np.save(directory / ".tensors/kept.npy", np.arange(10, dtype="<f4"))
        if look:
            os.listdir(directory)
        errno_of(os.truncate, directory / ".tensors/kept.npy", 50)
        assert contents(directory) == {"kept": ("F32", (10,), np.arange(10, dtype="<f4").tobytes())}


def test_shard_is_warned_of_only(directory):
    """What safetensors loads is a tensor, however odd its header."""
    for case in shards.WARNED:
        tensors = safetensors.deserialize(case.content)
        if len(tensors) == 1:
            write_file(directory / ".tensors/odd.safetensors", case.content)
            assert contents(directory)["odd"][2] == bytes(tensors[0][1]["data"]), case.name


# ---- mutations ----


def array_of(content):
    """What NumPy reads of it, in the terms of safetensors, or None. Bytes behind it are too many."""
    stream = io.BytesIO(content)
    try:
        array = np.lib.format.read_array(stream, allow_pickle=False)
    except Exception:
        return None
    code = array.dtype.str[1:].replace("b1", "?")
    if stream.read(1) or code not in BOTH or array.dtype.hasobject or array.dtype.names:
        return None
    return BOTH[code], array.shape, np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()


def tensor_of(content):
    try:
        tensors = safetensors.deserialize(content)
    except Exception:
        return None
    if len(tensors) != 1:
        return None
    return tensors[0][1]["dtype"], tuple(tensors[0][1]["shape"]), bytes(tensors[0][1]["data"])


def mutated(generator, content):
    """One to three changes, most of them in the header."""
    content = bytearray(content)
    for _ in range(generator.choice([1, 1, 2, 3])):
        at = generator.randrange(min(len(content), generator.choice([16, 160, 10**6])) or 1)
        kind = generator.randrange(5)
        if kind < 2 and content:
            content[at] = generator.randrange(256) if kind else content[at] ^ 1 << generator.randrange(8)
        elif kind == 2:
            del content[at:at + generator.randrange(1, 9)]
        elif kind == 3:
            content[at:at] = generator.choice([b"0", b"9", b"-", b",", b"'", b" ", b"(", b"}", b"\0", b"\xff", b"F"])
        else:
            del content[max(at, 1):]
    return bytes(content)


def originals():
    generator = np.random.default_rng(1)
    arrays = [generator.random((3, 4)).astype("<f4"), np.arange(12, dtype=">i2").reshape(3, 4),
              np.asfortranarray(generator.random((2, 3, 4))), np.array(1.5), np.zeros((0, 3), "u1")]
    found = [(".npy", npy(array, version)) for array in arrays for version in ((1, 0), (2, 0), (3, 0))]
    return found + [(".safetensors", one_tensor("F32", (2, 3), random_bytes(1, 24))),
                    (".safetensors", one_tensor("BF16", (4,), random_bytes(2, 8), "ünd"))]


@pytest.mark.parametrize("seed", SEEDS)
def test_mutations(mount, directory, seed):
    """Each is taken as what NumPy or safetensors reads, or refused; nothing else of the model ever changes."""
    generator, expected, pool = random.Random(seed), contents(directory), originals()
    print(f"seed {seed}, {INPUTS} mutations")
    taken = 0
    for number in range(INPUTS):
        suffix, content = generator.choice(pool)
        content = mutated(generator, content)
        verdict = array_of(content) if suffix == ".npy" else tensor_of(content)
        name = f"n{generator.randrange(6)}"
        code = errno_of(write_file, directory / f".tensors/{name}{suffix}", content)
        where = f"seed {seed}, mutation {number}: {content[:200]!r}"
        assert code in (0, errno.EBADMSG), where
        if suffix == ".npy" and code == errno.EBADMSG and verdict is not None:
            continue  # NumPy's reader is laxer than the format: tests/lib/test_npy_differential.py
        assert (code == 0) == (verdict is not None), where
        if code == 0:
            expected[name], taken = verdict, taken + 1
        if number % 20 == 19:
            assert contents(directory) == expected, where
    assert contents(directory) == expected
    mount.remount()
    assert contents(directory) == expected
    assert taken > INPUTS // 100
