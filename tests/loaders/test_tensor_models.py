"""Models of transformers written tensor by tensor: equal to what save_pretrained writes, and loaded as such."""

import json
import os
import shutil

import pytest

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

from safetensors import safe_open

from support import models
from support.files import read_file, tree_hashes
from support.mounts import SETTLES

LIMIT = "user.weightfs.max_shard_size"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def put(directory, name, tensor):
    """By NumPy where it has the dtype, else by a file of safetensors."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        safetensors_torch.save_file({"tensor": tensor}, directory / f".tensors/{name}.safetensors")
    else:
        np.save(directory / f".tensors/{name}.npy", tensor.numpy())


def weights(directory):
    return {path.name: read_file(path) for path in directory.iterdir()
            if path.name.endswith((".safetensors", ".index.json"))}


def tensors(directory):
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        for name, tensor in safetensors_torch.load_file(path).items():
            assert name not in found
            found[name] = tensor
    return found


def load(directory):
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype="auto")


@pytest.fixture
def reference(plain):
    """save_pretrained into an ordinary directory; the state dict that it saved."""
    def save(kind, dtype, **options):
        model = models.make(kind, dtype)
        model.save_pretrained(plain / "saved", **options)
        return plain / "saved", model
    return save


def write_all(directory, source, names):
    """Everything of `source` but its weights is copied, and its tensors are put one after the other."""
    directory.mkdir()
    for path in source.iterdir():
        if not path.name.endswith((".safetensors", ".index.json")):
            shutil.copy(path, directory)
    saved = tensors(source)
    for name in names or saved:
        put(directory, name, saved[name])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_written_tensor_by_tensor(mount, reference, kind, dtype):
    """One shard: byte by byte what save_pretrained writes, in whatever order the tensors come."""
    saved, model = reference(kind, DTYPES[dtype])
    names = sorted(tensors(saved), reverse=True)
    write_all(mount.dir / "m", saved, names)
    assert weights(mount.dir / "m") == weights(saved)
    models.assert_equal(load(mount.dir / "m"), model)
    mount.remount()
    assert tree_hashes(mount.dir / "m") == tree_hashes(saved)


@pytest.mark.parametrize("how", SETTLES)
def test_cut_as_transformers_does(mount, reference, plain, how):
    """A model in file order with a limit: as huggingface_hub plans it, each shard's bytes included."""
    hub = pytest.importorskip("huggingface_hub")
    saved, model = reference("llama", torch.float32)
    write_all(mount.dir / "m", saved, None)
    mount.settle(how)
    for limit in (1_000_000, 400_000, 5_000_000, 100):
        os.setxattr(mount.dir / "m", LIMIT, str(limit).encode())
        with safe_open(saved / "model.safetensors", "pt") as f:
            order = {name: f.get_tensor(name) for name in f.offset_keys()}
        expected = plain / str(limit)
        expected.mkdir()
        split = hub.split_torch_state_dict_into_shards(order, max_shard_size=limit)
        for name, keys in split.filename_to_tensors.items():
            safetensors_torch.save_file({key: order[key] for key in keys}, expected / name, metadata={"format": "pt"})
        ours = weights(mount.dir / "m")
        index = json.loads(ours.pop("model.safetensors.index.json", "null"))
        assert ours == weights(expected)
        assert (index["weight_map"] if index else {}) == (split.tensor_to_filename if split.is_sharded else {})
        if index:
            assert index["metadata"]["total_size"] == split.metadata["total_size"]
        models.assert_equal(load(mount.dir / "m"), model)


def test_update_of_a_saved_model(mount, reference):
    """save_pretrained in shards; tensors are replaced one by one: the model loads, other shards stay as they were."""
    saved, model = reference("llama", torch.bfloat16, max_shard_size="1MB")
    directory = mount.dir / "m"
    shutil.copytree(saved, directory)
    mount.wait_sealed()
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    with torch.no_grad():
        for name, tensor in list(model.named_parameters())[::7]:
            before = {path.name: path.stat().st_ino for path in directory.glob("*.safetensors")}
            tensor.mul_(-2)
            put(directory, name, tensor)
            models.assert_equal(load(directory), model)
            after = {path.name: path.stat().st_ino for path in directory.glob("*.safetensors")}
            assert {shard for shard in after if after[shard] != before[shard]} == {index["weight_map"][name]}
    assert json.loads((directory / "model.safetensors.index.json").read_text()) == index
    mount.remount()
    models.assert_equal(load(directory), model)


def test_merged_from_two_models(mount, reference, plain):
    """Tensors of one model linked and copied into another: what is equal is stored once."""
    saved, model = reference("llama", torch.float32)
    first, second = mount.dir / "first", mount.dir / "second"
    write_all(first, saved, None)
    before = mount.wait_sealed()["stored_bytes"]
    second.mkdir()
    shutil.copy(saved / "config.json", second)
    for number, name in enumerate(sorted(os.listdir(first / ".tensors"))):
        if number % 2:
            os.link(first / f".tensors/{name}", second / f".tensors/{name}")
        else:
            shutil.copy(first / f".tensors/{name}", second / f".tensors/{name}")
    models.assert_equal(load(second), model)
    assert weights(second) == weights(first)
    assert mount.wait_sealed()["stored_bytes"] < before * 1.02


def test_float8_and_integers(mount):
    """Dtypes that quantized models have."""
    directory = mount.dir / "m"
    directory.mkdir()
    made = {"f8": torch.arange(32).to(torch.float8_e4m3fn), "f8b": torch.ones(3, 3).to(torch.float8_e5m2),
            "u8": torch.arange(9, dtype=torch.uint8), "i64": torch.tensor(2**62), "bool": torch.tensor([True, False]),
            "bf": torch.randn(5, 7).to(torch.bfloat16), "c": torch.randn(4, dtype=torch.complex64),
            "empty": torch.zeros(0, 4, dtype=torch.float16)}
    for name, tensor in made.items():
        put(directory, name, tensor)
    found = tensors(directory)
    assert found.keys() == made.keys()
    for name, tensor in made.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert found[name].numpy(force=True).tobytes() == tensor.numpy().tobytes() if name not in ("f8", "f8b", "bf") \
            else torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


def test_trained_in_place(mount, reference):
    """An optimizer's steps on tensors that are mapped r+: the model has them when the mappings are closed."""
    saved, model = reference("llama", torch.float32)
    directory = mount.dir / "m"
    write_all(directory, saved, None)
    os.listdir(directory)
    with torch.no_grad():
        for name, tensor in list(model.named_parameters())[:5]:
            tensor.add_(1)
            mapped = np.load(directory / f".tensors/{name}.npy", mmap_mode="r+")
            mapped += 1
            mapped.flush()
            del mapped
    models.assert_equal(load(directory), model)
