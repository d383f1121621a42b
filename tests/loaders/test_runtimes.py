"""Other runtimes than PyTorch on files of the mount: Node, GGUF, ONNX, NumPy, Python's archives.

Each does the same on the disk itself, and its results are compared.
"""

import gc
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile

import pytest

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors")

import gguf
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from support import models
from support.files import read_file, sha256, tree_hashes
from support.mounts import SETTLES
from support.node import node
from support.training import in_each_state

SENTENCE = "a model is read byte for byte"
TEMPLATE = "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"
SECONDS = 60


def tokenizer():
    made = models.tokenizer()
    made.chat_template = TEMPLATE
    return made


@pytest.fixture(scope="module")
def save():
    """Saves a model in shards, and one shard that has no __metadata__, in a directory."""
    torch.manual_seed(0)
    model = models.llama(layers=2, vocabulary=1000)
    g = np.random.default_rng(0)
    bare = {"f32": g.standard_normal((7, 300), dtype=np.float32), "f16": np.arange(9, dtype=np.float16),
            "i64": np.arange(-5, 5), "u8": g.integers(0, 256, 5000, dtype=np.uint8),
            "bool": np.array([True, False])}

    def saver(directory):
        model.save_pretrained(directory, max_shard_size=models.largest_shard(model, 4))
        tokenizer().save_pretrained(directory)
        (directory / "bare").mkdir()
        save_file(bare, directory / "bare/bare.safetensors")
        return directory

    return saver


def compare(left, right):
    assert left == right


def shards(directory):
    return sorted(directory.glob("*.safetensors"))


def tensors_of(paths):
    """{name: [dtype, shape, sha256]} of what Python's safetensors finds in files."""
    return {name: [found["dtype"], found["shape"], hashlib.sha256(found["data"]).hexdigest()]
            for path in paths for name, found in safetensors.deserialize(read_file(path))}


# ---- Node ----

def test_node_reads_model(mount, plain, save):
    """Packages, positional reads, streams, Blobs and threads of Node find what Python's libraries find."""
    directory = save(mount.dir / "model")
    saved = save(plain / "model")
    hashes = [sha256(path) for path in shards(saved)]
    assert len(hashes) > 3
    words = tokenizer()
    expected = {
        "config": json.loads(read_file(saved / "config.json")),
        "tokens": words(SENTENCE)["input_ids"],
        "chat": words.apply_chat_template([{"role": "user", "content": SENTENCE}], tokenize=False),
        "packaged": tensors_of([saved / "bare/bare.safetensors"]),
        "positioned": tensors_of(shards(saved)),
        "streamed": hashes, "sliced": hashes, "worked": hashes}
    assert len(expected["positioned"]) > 20
    in_each_state(mount, lambda: compare(node("read_model.cjs", directory, SENTENCE), expected))


def test_node_file_operations(mount, plain, save):
    """cp, copyFile with FICLONE, streams, positional and vectored writes, links, times, watch: as on disk."""
    for root in (plain, mount.dir):
        save(root / "model")
    expected, said = (node("files.cjs", root) for root in (plain, mount.dir))
    assert said == expected
    assert said["seen"] == ["watched-1", "watched-1.tmp", "watched-2"]
    hashes = tree_hashes(plain)
    in_each_state(mount, lambda: compare(tree_hashes(mount.dir), hashes))


# ---- GGUF ----

SPLIT = 5
WRITERS = {"whole": {}, "temporary": {"use_temp_file": True}, "split": {"split_max_tensors": SPLIT},
           "split-after-metadata": {"split_max_size": 100_000, "small_first_shard": True}}


def tensors_mapped(directory):
    """(name, array) of the shards of a directory, mapped by the reader of gguf."""
    for path in shards(directory):
        with gguf.SafetensorsLocal(path) as found:
            for name, tensor in found.items():
                assert tensor.dtype == "F32"
                yield name, tensor.mmap_bytes().view(np.float32).reshape(tensor.shape)


def is_quantized(array):
    return array.ndim == 2 and array.shape[0] % 3 != 0


def quantized(array):
    return gguf.quants.quantize(array, gguf.GGMLQuantizationType.Q8_0)


def convert(source, target, **options):
    """What convert_hf_to_gguf.py does: metadata, then the tensors of the shards, some of them quantized."""
    writer = gguf.GGUFWriter(target, "llama", **options)
    writer.add_name("tiny")
    writer.add_block_count(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_bos_token_id(1)
    writer.add_token_list(sorted(tokenizer().get_vocab()))
    writer.add_token_scores([0.5, -1.0])
    for name, array in tensors_mapped(source):
        if is_quantized(array):
            writer.add_tensor(name, quantized(array), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf(paths):
    """{name: (shape, type, bytes)} of files' mapped tensors, {name: value} of the first one's fields."""
    readers = [gguf.GGUFReader(path) for path in paths]
    assert all(isinstance(tensor.data.base, np.memmap) for reader in readers for tensor in reader.tensors)
    tensors = {tensor.name: (tensor.shape.tolist(), tensor.tensor_type.name, tensor.data.tobytes())
               for reader in readers for tensor in reader.tensors}
    return tensors, {name: field.contents() for name, field in readers[0].fields.items()}


@pytest.mark.parametrize("how", ["split-after-metadata", *(
    pytest.param(how, marks=pytest.mark.long) for how in ("whole", "temporary", "split"))])
def test_gguf_written_from_shards(mount, plain, save, how, monkeypatch):
    """A GGUF file written on the mount from shards mapped there: the disk's bytes; read by mapping."""
    for root in (plain, mount.dir):
        save(root / "model")
        (root / "tmp").mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(root / "tmp"))
        convert(root / "model", root / "tiny.gguf", **WRITERS[how])
    hashes = tree_hashes(plain)
    names = sorted(path.name for path in plain.glob("*.gguf"))
    assert len(names) > 3 if "split" in how else names == ["tiny.gguf"]
    source = {}
    for name, array in tensors_mapped(plain / "model"):
        kind, data = ("Q8_0", quantized(array)) if is_quantized(array) else ("F32", array)
        source[name] = (list(reversed(array.shape)), kind, data.tobytes())
    assert {kind for _, kind, _ in source.values()} == {"Q8_0", "F32"}

    def check():
        assert tree_hashes(mount.dir) == hashes
        tensors, fields = read_gguf([mount.dir / name for name in names])
        assert tensors == source
        assert (fields["general.name"], fields["llama.block_count"]) == ("tiny", 2)
        assert fields["tokenizer.ggml.tokens"] == sorted(tokenizer().get_vocab())
        gc.collect()  # what is mapped keeps the mount busy

    in_each_state(mount, check)


def in_both(roots, program, *arguments):
    """Run a program of the gguf package in each of some directories, at once."""
    command = [sys.executable, "-m", f"gguf.scripts.gguf_{program}", *arguments]
    pipes = {"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    running = [subprocess.Popen(command, cwd=root, text=True, **pipes) for root in roots]
    for process in running:
        _, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, errors


@pytest.mark.long
def test_gguf_edited(mount, plain, save):
    """gguf-set-metadata edits through a shared mapping, dirty and sealed; gguf-new-metadata copies."""
    source, roots = save(plain / "model"), (plain, mount.dir)
    for root in roots:
        convert(source, root / "tiny.gguf")
    shutil.rmtree(source)
    for number, how in enumerate(SETTLES, 7):
        mount.settle(how)
        in_both(roots, "set_metadata", "--force", "tiny.gguf", "tokenizer.ggml.bos_token_id", str(number))
        assert sha256(mount.dir / "tiny.gguf") == sha256(plain / "tiny.gguf")
        assert read_gguf([mount.dir / "tiny.gguf"])[1]["tokenizer.ggml.bos_token_id"] == number
        gc.collect()
    in_both(roots, "new_metadata", "--general-name", "renamed", "tiny.gguf", "copy.gguf")
    mount.wait_sealed()
    mount.remount()
    assert tree_hashes(mount.dir) == tree_hashes(plain)
    assert read_gguf([mount.dir / "copy.gguf"])[1]["general.name"] == "renamed"
    gc.collect()


@pytest.mark.long
def test_gguf_in_node(mount, plain, save):
    """@huggingface/gguf reads what Python's writer wrote on the mount."""
    path = mount.dir / "tiny.gguf"
    convert(save(plain / "model"), path)
    reader = gguf.GGUFReader(path)
    first = min(tensor.data_offset for tensor in reader.tensors)
    tensors = [[tensor.name, tensor.shape.tolist(), tensor.data_offset - first] for tensor in reader.tensors]
    del reader
    gc.collect()

    def check():
        said = node("hub.cjs", "gguf", path)
        assert said["tensors"] == tensors
        assert said["metadata"]["llama.block_count"] == 2
        assert said["metadata"]["tokenizer.ggml.tokens"] == sorted(tokenizer().get_vocab())

    in_each_state(mount, check)


# ---- ONNX ----

INPUT = np.random.default_rng(1).standard_normal((3, 64), dtype=np.float32)


def onnx_model():
    g = np.random.default_rng(0)
    weights = [numpy_helper.from_array(g.standard_normal(shape, dtype=np.float32), name)
               for name, shape in (("first", (64, 1024)), ("second", (1024, 96)))]
    nodes = [helper.make_node("MatMul", ["input", "first"], ["hidden"]),
             helper.make_node("Relu", ["hidden"], ["on"]),
             helper.make_node("MatMul", ["on", "second"], ["output"])]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, size])]
            for name, size in (("input", 64), ("output", 96))]
    graph = helper.make_graph(nodes, "graph", *ends, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def save_onnx(path, in_one_file=True):
    """Save the model with its weights beside it."""
    onnx.save_model(onnx_model(), path, save_as_external_data=True, all_tensors_to_one_file=in_one_file,
                    location="model.data" if in_one_file else None, size_threshold=0)


def session_of(path, save_as=None):
    """A session that computes with the weights where they are mapped."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_prepacking", "1")
    if save_as:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(save_as)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name",
                                         f"{save_as.stem}.weights")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def computed(session):
    result, = session.run(None, {"input": INPUT})
    return result.tobytes()


def run_onnx(path):
    """What onnxruntime computes, and the names of the files that it has mapped for it."""
    session = session_of(path)
    with open("/proc/self/maps") as maps:
        mapped = {line.rstrip().rpartition("/")[2] for line in maps if f"{path.parent}/" in line}
    return computed(session), mapped


@pytest.mark.parametrize("data", [{"model.data"}, {"first", "second"}], ids=["one-file", "file-per-tensor"])
def test_onnx_external_data(mount, plain, data):
    """A model whose weights lie beside it: saved, checked, loaded, and run from its mapped weights."""
    for root in (plain, mount.dir):
        (root / "onnx").mkdir()
        save_onnx(root / "onnx/model.onnx", in_one_file=len(data) == 1)
        session_of(root / "onnx/model.onnx", save_as=root / "onnx/optimized.onnx")
    expected, mapped = run_onnx(plain / "onnx/model.onnx")
    assert mapped == data
    hashes = tree_hashes(plain)
    assert data < {os.path.basename(name) for name in hashes}

    def check():
        path = mount.dir / "onnx/model.onnx"
        assert tree_hashes(mount.dir) == hashes
        onnx.checker.check_model(path)
        assert onnx.load(path).SerializeToString() == onnx.load(plain / "onnx/model.onnx").SerializeToString()
        assert run_onnx(path) == (expected, data)
        assert run_onnx(path.with_name("optimized.onnx")) == run_onnx(plain / "onnx/optimized.onnx")

    in_each_state(mount, check)


def test_onnx_saved_again(mount, plain):
    """onnx appends to external data that is there already; a model in use is replaced under its session."""
    for how in ("sealed", "remounted"):
        for root in (plain, mount.dir):
            save_onnx(root / "model.onnx")
        mount.settle(how)
        assert tree_hashes(mount.dir) == tree_hashes(plain)
    expected, _ = run_onnx(plain / "model.onnx")
    session = session_of(mount.dir / "model.onnx")
    assert computed(session) == expected
    (mount.dir / "zeros.data").write_bytes(bytes((plain / "model.data").stat().st_size))
    os.replace(mount.dir / "zeros.data", mount.dir / "model.data")
    assert computed(session) == expected
    del session
    in_each_state(mount, lambda: compare(any(run_onnx(mount.dir / "model.onnx")[0]), False))


# ---- NumPy ----

def arrays():
    g = np.random.default_rng(0)
    return {
        "matrix": g.standard_normal((300, 200)), "fortran": np.asfortranarray(g.integers(0, 99, (70, 90))),
        "half": g.standard_normal(5001).astype(np.float16),
        "bytes": g.integers(0, 256, 70_001, dtype=np.uint8),
        "complex": g.standard_normal((5, 5)) + 1j, "big-endian": np.arange(1000, dtype=">i4"),
        "record": np.array([(1, 2.5, b"x"), (3, 4.5, b"y")], dtype=[("n", "i4"), ("v", "f8"), ("s", "S3")]),
        "scalar": np.array(7.5), "empty": np.empty((0, 3))}


def test_npy(mount, plain):
    """np.save, and np.load in memory, mapped for reading, for writing and for changes of one's own."""
    for root in (plain, mount.dir):
        for name, array in arrays().items():
            np.save(root / f"{name}.npy", array)
        np.savez(root / "all.npz", **arrays())
        np.savez_compressed(root / "compressed.npz", **arrays())
        arrays()["half"].tofile(root / "raw.bin")
        with open(root / "raw.bin", "ab") as f:
            arrays()["half"].tofile(f)
    hashes = {name: value for name, value in tree_hashes(plain).items() if not name.endswith(".npz")}

    def check():
        found = tree_hashes(mount.dir)
        assert {name: found[name] for name in hashes} == hashes
        for name, array in arrays().items():
            for mode in (None, "r", "r+", "c"):
                if mode and array.size == 0:
                    continue  # nothing to map
                loaded = np.load(mount.dir / f"{name}.npy", mmap_mode=mode)
                assert isinstance(loaded, np.memmap) == (mode is not None)
                assert (loaded.dtype, loaded.shape, loaded.flags.f_contiguous) == (
                    array.dtype, array.shape, array.flags.f_contiguous)
                assert loaded.tobytes() == array.tobytes(), (name, mode)
                if mode == "c" and array.ndim:
                    loaded[0] = loaded[-1]
            for archive in ("all.npz", "compressed.npz"):
                with np.load(mount.dir / archive) as inside:
                    assert inside[name].tobytes() == array.tobytes()
        half = arrays()["half"]
        part = np.fromfile(mount.dir / "raw.bin", np.float16, 100, offset=half.nbytes)
        assert part.tobytes() == half[:100].tobytes()

    in_each_state(mount, check)


def edited_by_mapping(path, step):
    """Write through a mapping whose descriptor is closed, and with write(2): each sees the other at once."""
    mapped = np.load(path, mmap_mode="r+")
    again = np.memmap(path, dtype=mapped.dtype, mode="r", offset=mapped.offset, shape=mapped.shape)
    mapped[step::7] *= step + 2
    assert read_file(path)[mapped.offset:] == mapped.tobytes() == again.tobytes()
    with open(path, "r+b", buffering=0) as f:
        f.seek(mapped.offset + 8 * 1000)
        f.write(np.float64(step).tobytes() * 600)
        mapped.reshape(-1)[-1] = step
        assert f.seek(-8, os.SEEK_END) and f.read() == np.float64(step).tobytes()
    assert (mapped.reshape(-1)[1000:1600] == step).all() and (again.reshape(-1)[1000:1600] == step).all()
    mapped.flush()


def test_written_by_mapping(mount, plain):
    """A new file made by mapping, and edited by mapping while dirty, sealed and after a remount."""
    for root in (plain, mount.dir):
        made = np.lib.format.open_memmap(root / "made.npy", mode="w+", dtype=np.float64, shape=(700, 90))
        made[:] = np.arange(700 * 90).reshape(700, 90)
        assert read_file(root / "made.npy")[made.offset:] == made.tobytes()
        raw = np.memmap(root / "raw.bin", dtype=np.uint16, mode="w+", shape=(100_003,), offset=4100)
        raw[50_000:] = 513
        del made, raw
        gc.collect()
    for step, how in enumerate(SETTLES):
        mount.settle(how)
        for root in (plain, mount.dir):
            edited_by_mapping(root / "made.npy", step)
        gc.collect()
        assert tree_hashes(mount.dir) == tree_hashes(plain)
    mount.remount()
    assert tree_hashes(mount.dir) == tree_hashes(plain)


# ---- archives ----

def pack(root):
    """Archives of root/model, each also appended to."""
    with zipfile.ZipFile(root / "stored.zip", "w") as stored, \
            zipfile.ZipFile(root / "deflated.zip", "w", zipfile.ZIP_DEFLATED) as deflated:
        for path in sorted((root / "model").rglob("*")):
            for archive in (stored, deflated):
                archive.write(path, path.relative_to(root))
    with zipfile.ZipFile(root / "stored.zip", "a") as stored:
        stored.write(root / "model/config.json", "model/again.json")
    with tarfile.open(root / "model.tar", "w") as whole, \
            tarfile.open(root / "model.tar.gz", "w:gz", compresslevel=1) as compressed:
        for archive in (whole, compressed):
            archive.add(root / "model", "model")
    with tarfile.open(root / "model.tar", "a") as archive:
        archive.add(root / "model/config.json", "model/again.json")


def unpack(archive, directory):
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as opened:
            assert opened.testzip() is None
            opened.extractall(directory)
    else:
        with tarfile.open(archive) as opened:
            opened.extractall(directory)


def packed(archive):
    """The bytes of an archive, as far as they do not depend on when and from what order it was made."""
    if archive.suffix == ".zip":
        return sha256(archive)
    with tarfile.open(archive) as opened:
        return sorted((member.name, member.size, member.type, member.mode, member.mtime, member.linkname)
                      for member in opened.getmembers())


def test_archives(mount, plain, save):
    """zipfile and tarfile: a model packed and unpacked on the mount, from and to the disk, as on the disk."""
    for root in (plain, mount.dir):
        save(root / "model")
        os.link(root / "model/config.json", root / "model/linked.json")
        for path in (root / "model").rglob("*"):
            os.utime(path, (1_700_000_000, 1_700_000_000))
        os.utime(root / "model", (1_700_000_000, 1_700_000_000))
        pack(root)
    whole = tree_hashes(plain / "model")
    appended = whole | {"again.json": whole["config.json"]}
    names = ["stored.zip", "deflated.zip", "model.tar", "model.tar.gz"]
    assert whole["linked.json"] == whole["config.json"]
    for name in names:
        assert packed(mount.dir / name) == packed(plain / name), name
    for how, source, target in (("dirty", mount.dir, mount.dir), ("sealed", mount.dir, plain),
                                ("remounted", mount.dir, mount.dir), ("sealed", plain, mount.dir)):
        mount.settle(how)
        for name in names:
            unpack(source / name, target / "out")
            expected = appended if name in ("stored.zip", "model.tar") else whole
            assert tree_hashes(target / "out/model") == expected, (name, how)
            shutil.rmtree(target / "out")
