"""safetensors on the mount: what is saved has the bytes of a plain directory, whatever is read is equal."""

import concurrent.futures
import hashlib
import itertools
import json
import os
import re
import shutil
import threading

import pytest

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors")

import safetensors.numpy
import safetensors.torch
from safetensors import safe_open

from support import models, training
from support.files import tree_hashes, write_file
from support.mounts import wait_for
from support.training import in_each_state

BACKENDS = ("mmap", "pread")
SHAPES = ((), (1,), (7,), (0,), (3, 5), (0, 4), (3, 0, 2), (2, 3, 4, 1))
NAMES = ["BF16", "BOOL", "C64", "F16", "F32", "F4", "F64", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ",
         "F8_E8M0", "I16", "I32", "I64", "I8", "U16", "U32", "U64", "U8"]
NUMPY_TYPES = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16",
               "uint8", "bool", "complex64", ">f8", ">f4", ">i8", ">u2"]
SHARDS, TENSORS_A_SHARD = 6, 8
THREADS, PROCESSES = 32, 8
VERSIONS = 25
SECONDS = 60


def make(dtype, shape, seed):
    """A tensor of random bytes (of zeros and ones for bool)."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, dtype=torch.uint8, generator=generator).bool()
    flat = torch.Size(shape).numel() * dtype.itemsize
    data = torch.randint(0, 256, (flat,), dtype=torch.uint8, generator=generator)
    return data.view(dtype).reshape(shape) if flat else torch.empty(shape, dtype=dtype)


def same_bits(left, right):
    """Equal, and where numbers are NaN the same NaN."""
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return False
    return torch.equal(*(one.contiguous().flatten().view(torch.uint8) for one in (left, right)))


def assert_same_tensors(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert same_bits(found[name], tensor), name


def all_types():
    """Every type that torch has and safetensors takes."""
    found = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    return sorted((dtype for dtype in found if dtype in safetensors.torch._SIZE), key=str)


def of_all_types():
    tensors = {}
    for dtype, shape in itertools.product(all_types(), SHAPES):
        if dtype != torch.float4_e2m1fn_x2 or shape:  # two numbers in each: it has a dimension
            tensors[f"{dtype}.{'x'.join(map(str, shape))}"] = make(dtype, shape, len(tensors))
    return tensors


def test_every_type(mount, plain):
    """Tensors of each type and odd shapes, empty ones and scalars: the same file; loaded equal by each backend."""
    tensors = of_all_types()
    by_pread = {name: tensor for name, tensor in tensors.items() if tensor.dtype != torch.float4_e2m1fn_x2}
    for base in (mount.dir, plain):
        safetensors.torch.save_file(tensors, base / "all.safetensors", metadata={"format": "pt"})
        safetensors.torch.save_file(by_pread, base / "most.safetensors")
        for dtype in all_types():
            part = {name: tensor for name, tensor in tensors.items() if tensor.dtype == dtype}
            safetensors.torch.save_file(part, base / f"{dtype}.safetensors")
        safetensors.torch.save_file({}, base / "none.safetensors")
    with safe_open(plain / "all.safetensors", "pt") as f:
        assert sorted({f.get_slice(name).get_dtype() for name in f.keys()}) == NAMES
    expected = tree_hashes(plain)
    assert len(expected) == len(NAMES) + 3

    def check():
        assert tree_hashes(mount.dir) == expected
        assert_same_tensors(safetensors.torch.load_file(mount.dir / "all.safetensors"), tensors)
        for backend in BACKENDS:
            assert_same_tensors(safetensors.torch.load_file(mount.dir / "most.safetensors", backend=backend),
                                by_pread)
            assert safetensors.torch.load_file(mount.dir / "none.safetensors", backend=backend) == {}
        for dtype in all_types():
            loaded = safetensors.torch.load_file(mount.dir / f"{dtype}.safetensors")
            assert_same_tensors(loaded, {name: tensors[name] for name in loaded})
            assert len(loaded) >= len(SHAPES) - 1

    in_each_state(mount, check)


def test_numpy(mount, plain):
    """Arrays of each type and byte order: save_file and load_file, save and load."""
    arrays = {}
    for name, shape in itertools.product(NUMPY_TYPES, SHAPES):
        random = np.random.default_rng(len(arrays))
        arrays[f"{name}.{len(arrays)}"] = np.asarray(random.integers(0, 100, shape)).astype(name)
    for base in (mount.dir, plain):
        safetensors.numpy.save_file(arrays, base / "file.safetensors", metadata={"из": "numpy"})
        write_file(base / "bytes.safetensors", safetensors.numpy.save(arrays))
    expected = tree_hashes(plain)

    def check():
        assert tree_hashes(mount.dir) == expected
        for loaded in (safetensors.numpy.load_file(mount.dir / "file.safetensors"),
                       safetensors.numpy.load((mount.dir / "bytes.safetensors").read_bytes())):
            assert loaded.keys() == arrays.keys()
            for name, array in arrays.items():
                assert loaded[name].dtype == array.dtype.newbyteorder("=")
                assert np.array_equal(loaded[name], array), name

    in_each_state(mount, check)


def test_serialize(mount, plain):
    """The calls that the others are made of: serialize_file writes what serialize returns."""
    arrays = {f"block.{number}": np.random.default_rng(number).random((number + 1, 333)) for number in range(5)}
    specs = {name: safetensors.TensorSpec(dtype="float64", shape=array.shape, data_ptr=array.ctypes.data,
                                          data_len=array.nbytes) for name, array in arrays.items()}
    for base in (mount.dir, plain):
        safetensors.serialize_file(specs, base / "file.safetensors", {"format": "np"})
        write_file(base / "bytes.safetensors", safetensors.serialize(specs, {"format": "np"}))
    expected = tree_hashes(plain)
    assert len(set(expected.values())) == 1

    def check():
        assert tree_hashes(mount.dir) == expected
        found = dict(safetensors.deserialize((mount.dir / "file.safetensors").read_bytes()))
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert (found[name]["dtype"], found[name]["shape"]) == ("F64", list(array.shape))
            assert found[name]["data"] == array.tobytes()

    in_each_state(mount, check)


METADATA = {
    "none": None,
    "empty": {},
    "one": {"format": "pt"},
    "texts": {"": "", "ключ": "значение ✓\n\t\"\\", "json": json.dumps({"a": [1, None]}), "long": "x" * 1_000_000},
    "many": {f"key {number}": str(number) for number in range(500)},
}


def test_metadata(mount):
    """Whatever text a file carries comes back, however its writer ordered it."""
    tensors = {"weight": make(torch.float32, (50, 301), 0)}
    written = {}
    for kind, metadata in METADATA.items():
        path = mount.dir / f"{kind}.safetensors"
        safetensors.torch.save_file(tensors, path, metadata=metadata)
        copy = safetensors.torch.save(tensors, metadata=metadata)  # the order of the keys is another
        write_file(mount.dir / f"{kind}.copy.safetensors", copy)
        written |= {path.name: path.read_bytes(), f"{kind}.copy.safetensors": copy}

    def check():
        for name, content in written.items():
            assert (mount.dir / name).read_bytes() == content
            with safe_open(mount.dir / name, "pt") as f:
                assert f.metadata() == METADATA[name.split(".")[0]], name
                assert same_bits(f.get_tensor("weight"), tensors["weight"])

    in_each_state(mount, check)


def test_tied_model(mount, plain):
    """save_model keeps one of the tied tensors, load_model ties them again; strict where something is missing."""
    model = models.make("gpt2", torch.float32)
    for base in (mount.dir, plain):
        safetensors.torch.save_model(model, base / "model.safetensors")
        part = {name: tensor for name, tensor in model.state_dict().items() if ".h.3." not in name}
        part.pop("lm_head.weight")
        safetensors.torch.save_file(part, base / "part.safetensors")
    expected = tree_hashes(plain)
    fresh = models.make("gpt2", torch.float32, seed=1)

    def check():
        assert tree_hashes(mount.dir) == expected
        for backend in BACKENDS:
            loaded = models.make("gpt2", torch.float32, seed=1)
            assert safetensors.torch.load_model(loaded, mount.dir / "model.safetensors", backend=backend) == (
                set(), [])
            assert loaded.lm_head.weight.data_ptr() == loaded.transformer.wte.weight.data_ptr()
            models.assert_equal(loaded, model)
        missing, unexpected = safetensors.torch.load_model(fresh, mount.dir / "part.safetensors", strict=False)
        assert missing == {name for name in model.state_dict() if ".h.3." in name}
        assert unexpected == []
        with pytest.raises(RuntimeError, match="Missing key"):
            safetensors.torch.load_model(fresh, mount.dir / "part.safetensors")

    in_each_state(mount, check)


CUTS = [np.s_[:], np.s_[0], np.s_[-1], np.s_[3:17], np.s_[:0], np.s_[56:61], np.s_[..., 3], np.s_[:, 5:9],
        np.s_[2:40:3], np.s_[1:30, 7], np.s_[::10, ::7]]
ODD_CUTS = [np.s_[-5:], np.s_[50:70], np.s_[61], np.s_[:, 99], np.s_[0, 0, 0], "text", None]


def cut(source, where):
    """A part of a tensor, or the refusal."""
    try:
        return torch.as_tensor(source[where])
    except Exception as problem:
        return type(problem), str(problem)


def test_slices(mount, plain):
    """safe_open: names in both orders, shapes, types and parts, as in memory; odd parts as from a plain directory."""
    tensors = {str(dtype): make(dtype, (61, 43), number) for number, dtype in enumerate(
        (torch.float32, torch.int64, torch.bfloat16, torch.uint8, torch.float16))}
    numpy_has = [name for name in tensors if name != "torch.bfloat16"]
    for base in (mount.dir, plain):
        safetensors.torch.save_file(tensors, base / "model.safetensors")

    def parts(base, framework, backend):
        names = list(tensors) if framework == "pt" else numpy_has
        with safe_open(base / "model.safetensors", framework, backend=backend) as f:
            slices = {name: f.get_slice(name) for name in names}
            assert all(same_bits(cut(one, where), tensors[name][where])
                       for name, one in slices.items() for where in CUTS)
            about = [(name, one.get_shape(), one.get_dtype()) for name, one in slices.items()]
            odd = [cut(one, where) for one in slices.values() for where in ODD_CUTS]
            return (f.keys(), f.offset_keys(), about), odd

    def check():
        for framework, backend in itertools.product(("pt", "np"), BACKENDS):
            (about, odd), (about_plain, odd_plain) = (
                parts(base, framework, backend) for base in (mount.dir, plain))
            assert about == about_plain
            for mine, theirs in zip(odd, odd_plain, strict=True):
                assert same_bits(mine, theirs) if isinstance(theirs, torch.Tensor) else mine == theirs

    assert parts(plain, "pt", "mmap")[0][1] == ["torch.int64", "torch.float32", "torch.bfloat16",
                                                "torch.float16", "torch.uint8"]
    in_each_state(mount, check)


def what_is_refused(directory):
    """What save_file and load_file say of what they cannot do; the paths left out."""
    tensor = make(torch.float32, (20, 30), 0)
    save, load = safetensors.torch.save_file, safetensors.torch.load_file
    (directory / "directory.safetensors").mkdir()
    write_file(directory / "file", b"")
    save({"kept": tensor}, directory / "kept.safetensors")
    attempts = [
        (save, {"a": tensor}, directory / "missing" / "model.safetensors"),
        (save, {"a": tensor}, directory / "file" / "model.safetensors"),
        (save, {"a": tensor}, directory / "directory.safetensors"),
        (save, {"a": tensor}, directory / ("n" * 300)),
        (save, {"a": tensor.T}, directory / "kept.safetensors"),
        (save, {"a": tensor, "b": tensor}, directory / "kept.safetensors"),
        (save, {"a": tensor.to_sparse()}, directory / "kept.safetensors"),
        (save, {"a": tensor.to(torch.complex128)}, directory / "kept.safetensors"),
        (load, directory / "missing.safetensors"),
        (load, directory / "directory.safetensors"),
        (load, directory / "file"),
        (load, directory / "file" / "model.safetensors"),
    ]
    said = []
    for function, *arguments in attempts:
        with pytest.raises(Exception) as problem:
            function(*arguments)
        said.append((problem.type, re.sub(r"\.tmp\w+", ".tmp", str(problem.value).replace(str(directory), ""))))
    return said


def test_refusals(mount, plain):
    """What cannot be saved or loaded is refused in the words of a plain directory, and leaves nothing behind."""
    assert what_is_refused(mount.dir) == what_is_refused(plain)
    assert tree_hashes(mount.dir) == tree_hashes(plain)
    assert sorted(os.listdir(mount.dir)) == ["directory.safetensors", "file", "kept.safetensors"]


# ---- many readers ----


def shards(seed, elements=40_000):
    """{file name: tensors} of a model."""
    return {f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors": {
        f"layers.{number}.{at}": make(torch.float32, (elements // 40, 40), seed + number * TENSORS_A_SHARD + at)
        for at in range(TENSORS_A_SHARD)} for number in range(SHARDS)}


def digests(tensors):
    return {name: hashlib.sha256(memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy())).hexdigest()
            for name, tensor in tensors.items()}


def load_whole(path):
    return safetensors.torch.load_file(path)


def load_by_pread(path):
    return safetensors.torch.load_file(path, backend="pread")


def load_one_by_one(path):
    with safe_open(path, "pt") as f:
        return {name: f.get_tensor(name) for name in reversed(f.keys())}


def load_in_slices(path):
    with safe_open(path, "pt") as f:
        slices = {name: f.get_slice(name) for name in f.keys()}
        return {name: torch.cat([one[at:at + 100] for at in range(0, one.get_shape()[0], 100)])
                for name, one in slices.items()}


def load_arrays(path):
    return {name: torch.from_numpy(array) for name, array in safetensors.numpy.load_file(path).items()}


WAYS = (load_whole, load_by_pread, load_one_by_one, load_in_slices, load_arrays)


def load_all(directory, number, gate):
    """Load each shard when the others do, beginning with another one than they; the digests of all tensors."""
    torch.set_num_threads(1)
    names = sorted(os.listdir(directory))
    found = {}
    gate.wait(SECONDS)
    for at in range(len(names)):
        name = names[(number + at) % len(names)]
        found |= digests(WAYS[number % len(WAYS)](directory / name))
    return found


def answer(pipe, function, *arguments):
    pipe.send(function(*arguments))


def in_processes(count, function, *arguments):
    """The values of function(*arguments, number, gate), all begun at once in processes without a past."""
    gate = training.processes.Barrier(count)
    pipes, started = [], []
    for number in range(count):
        pipe, far_end = training.processes.Pipe(duplex=False)
        pipes.append(pipe)
        started.append(training.processes.Process(
            target=answer, args=(far_end, function, *arguments, number, gate), daemon=True))
        started[-1].start()
        far_end.close()
    try:
        return [pipe.recv() for pipe in pipes if pipe.poll(SECONDS) or pytest.fail("a process hangs")]
    finally:
        for process in started:
            process.kill()
            process.join()


def save_shards(directory, seed=0, **options):
    made = shards(seed, **options)
    directory.mkdir(exist_ok=True)
    for name, tensors in made.items():
        safetensors.torch.save_file(tensors, directory / name)
    return {name: digest for tensors in made.values() for name, digest in digests(tensors).items()}


def test_cold_threads(mount):
    """32 threads load all shards at once, in five ways, from a mount that nothing was read from."""
    expected = save_shards(mount.dir / "model")
    mount.remount()
    gate = threading.Barrier(THREADS)
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        for found in pool.map(lambda number: load_all(mount.dir / "model", number, gate), range(THREADS)):
            assert found == expected


def test_cold_processes(mount):
    """8 processes load all shards at once from a mount that nothing was read from."""
    expected = save_shards(mount.dir / "model")
    mount.remount()
    for found in in_processes(PROCESSES, load_all, mount.dir / "model"):
        assert found == expected


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize("options", [(), ("passthrough=off",)], ids=["default", "without-passthrough"])
def test_cold_again_and_again(unmounted, options):
    """Bigger shards, cold each time, also composed of others' tensors and without passthrough."""
    mount = unmounted.mount(*options)
    expected = save_shards(mount.dir / "model", elements=400_000)
    mount.wait_sealed()
    (mount.dir / "again").mkdir()
    for number, name in enumerate(sorted(os.listdir(mount.dir / "model"))):
        both = [safetensors.torch.load_file(mount.dir / "model" / other) for other in
                sorted(os.listdir(mount.dir / "model"))[number - 1:number + 1 or None]]
        safetensors.torch.save_file({key: tensor for tensors in both for key, tensor in tensors.items()},
                                    mount.dir / "again" / name)
    del both
    composed = {}
    for name in os.listdir(mount.dir / "again"):
        composed |= digests(safetensors.torch.load_file(mount.dir / "again" / name))
    mount.wait_sealed()
    for directory, digests_of_it in (("model", expected), ("again", composed)) * 3:
        mount.remount()
        for found in in_processes(PROCESSES, load_all, mount.dir / directory):
            assert found == digests_of_it


# ---- readers beside writers ----


def version(number, elements=100_000):
    """Tensors that say which version they are of."""
    return {f"weight.{at}": torch.full((elements,), float(number)) for at in range(4)}


def write_versions(path, count, pipe):
    """Save version after version under one name, until all are written."""
    for number in range(1, count + 1):
        safetensors.torch.save_file(version(number), path)
    pipe.send("done")


def read_version(path):
    """The version of a file; all of its tensors must be of it."""
    seen = set()
    for tensor in load_one_by_one(path).values():
        seen |= set(tensor.unique().tolist())
    assert len(seen) == 1, seen
    return seen.pop()


def test_replaced_while_read(mount):
    """New versions are renamed over a file that others load: each sees one whole version, and never an older one."""
    path = mount.dir / "model.safetensors"
    safetensors.torch.save_file(version(0), path)
    mount.remount()
    pipe, far_end = training.processes.Pipe()
    writer = training.processes.Process(target=write_versions, args=(path, VERSIONS, far_end), daemon=True)
    done = threading.Event()

    def read(_):
        seen = [read_version(path)]
        while not done.is_set():
            seen.append(read_version(path))
        return seen

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read, number) for number in range(3)]
        try:
            writer.start()
            assert pipe.poll(SECONDS), "the writer is not done"
        finally:
            done.set()
        for reader in readers:
            seen = reader.result(SECONDS)
            assert seen == sorted(seen)
    writer.join(SECONDS)
    assert writer.exitcode == 0
    in_each_state(mount, lambda: check_version(path, VERSIONS))
    assert os.listdir(mount.dir) == [path.name]


def check_version(path, number):
    assert read_version(path) == number


@pytest.mark.parametrize("composed", [False, True], ids=["new", "shares-with-another"])
def test_read_while_sealed(mount, composed):
    """Loads that are begun before, while and after a file is sealed, shared with another or not, are equal."""
    tensors = {f"layer.{number}": make(torch.float32, (250_000,), number) for number in range(12)}
    if composed:
        safetensors.torch.save_file({name: tensors[name] for name in list(tensors)[3:]},
                                    mount.dir / "first.safetensors")
        mount.wait_sealed()
    expected = digests(tensors)
    path = mount.dir / "model.safetensors"
    sealed = threading.Event()

    def read(way):
        count = 0
        while not (last := sealed.is_set()) or not count:
            assert digests(way(path)) == expected
            count += 1
        assert last
        return count

    safetensors.torch.save_file(tensors, path)
    with concurrent.futures.ThreadPoolExecutor(len(WAYS)) as pool:
        readers = [pool.submit(read, way) for way in WAYS]
        try:
            wait_for(lambda: mount.status()["dirty"] == 0, 60, "the file sealed")
        finally:
            sealed.set()
        assert all(reader.result(SECONDS) for reader in readers)
    in_each_state(mount, lambda: check_digests(path, expected))


def check_digests(path, expected):
    assert digests(safetensors.torch.load_file(path)) == expected


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sealed", [False, True])
def test_removed_and_replaced(mount, backend, sealed):
    """What is open or loaded stays what it was when its file is removed, and when another takes its name."""
    path, old, new = mount.dir / "model.safetensors", version(1), version(2)
    safetensors.torch.save_file(old, path)
    if sealed:
        mount.wait_sealed()
    loaded = safetensors.torch.load_file(path, backend=backend)
    with safe_open(path, "pt", backend=backend) as first:
        path.unlink()
        with pytest.raises(FileNotFoundError):
            safe_open(path, "pt", backend=backend)
        safetensors.torch.save_file(new, path)
        with safe_open(path, "pt", backend=backend) as second:
            assert same_bits(first.get_tensor("weight.0"), old["weight.0"])
            shutil.copy(path, mount.dir / "copy")
            safetensors.torch.save_file(version(3), path)
            wait_for(lambda: mount.status()["dirty"] == 0, 60, "all sealed")
            assert_same_tensors({name: first.get_tensor(name) for name in first.keys()}, old)
            assert_same_tensors({name: second.get_tensor(name) for name in second.keys()}, new)
        assert_same_tensors(loaded, old)
    assert read_version(path) == 3
    del loaded, first, second
    in_each_state(mount, lambda: check_version(path, 3))
    assert_same_tensors(safetensors.torch.load_file(mount.dir / "copy"), new)
