"""Two processes save into one directory of the mount at once: the files of a plain directory, loaded equal."""

import gc
import hashlib
import json
import os
import time

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import (FileSystemReader, FileSystemWriter, HuggingFaceStorageReader,
                                          HuggingFaceStorageWriter)
from torch.distributed.checkpoint._consolidate_hf_safetensors import (
    consolidate_safetensors_files, consolidate_safetensors_files_on_every_rank)
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save, torch_save_to_dcp
from torch.distributed.checkpoint.state_dict import (StateDictOptions, get_model_state_dict, get_state_dict,
                                                     set_state_dict)
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from support import models, training
from support.distributed import Pair
from support.files import tree_hashes
from support.mounts import wait_for

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

SHARDINGS = {"rows": Shard(0), "columns": Shard(1), "everywhere": Replicate()}
RESHARDINGS = {"rows": Shard(1), "columns": Shard(0), "everywhere": Shard(0)}
METADATA = ".metadata"  # of a checkpoint: it names a random identity of the save
FILES = 3


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two processes, for all tests here."""
    made = Pair(tmp_path_factory.mktemp("pair"))
    yield made
    made.close()


@pytest.fixture(scope="module", autouse=True)
def little_garbage():
    """Collecting garbage is quick: what the libraries made at import is left out."""
    llama()
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def hashes(root):
    """{relative path: sha256}; of what is written in random order the sorted, of random identities the name."""
    found = tree_hashes(root)
    for name in found:
        if os.path.basename(name) == METADATA:
            found[name] = None
        elif os.path.basename(name).startswith("shard-"):
            found[name] = content(root / name)
    return found


def content(shard):
    """The header of a shard, whose __metadata__ is in random order, and the hash of its data."""
    data = shard.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), hashlib.sha256(data[end:]).hexdigest()


# ---- what is saved ----


def tensors(seed):
    """The tensors of a model, whole."""
    generator = torch.Generator().manual_seed(seed)
    return {f"{name}.{number}": torch.randn(101 + number, 67, generator=generator).to(dtype)
            for number, dtype in enumerate((torch.float32, torch.bfloat16, torch.float64))
            for name in SHARDINGS}


def state(seed):
    """What a training keeps: tensors, nested, and what is none."""
    return {"model": tensors(seed), "counts": {"step": seed, "text": "ключ", "scalar": torch.tensor(seed)}}


def distributed(made, shardings):
    """Each tensor in two parts (or whole in both processes), by the kind in its name."""
    mesh = init_device_mesh("cpu", (2,))
    return {name: distribute_tensor(tensor, mesh, [shardings[name.split(".")[0]]])
            for name, tensor in made.items()}


def distributed_state(seed, shardings):
    made = state(seed)
    return made | {"model": distributed(made["model"], shardings)}


def emptied(made):
    """The same shapes, all zeros."""
    if isinstance(made, dict):
        return {key: emptied(value) for key, value in made.items()}
    return torch.zeros_like(made) if isinstance(made, torch.Tensor) else type(made)()


def same(left, right):
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, torch.Tensor):
        left, right = (one.full_tensor() if isinstance(one, DTensor) else one for one in (left, right))
        return left.dtype == right.dtype and torch.equal(left, right)
    return left == right


def digest(made):
    """Of a state dict, the same in both processes."""
    total = hashlib.sha256()
    for name in sorted(made):
        tensor = made[name].full_tensor() if isinstance(made[name], DTensor) else made[name]
        total.update(name.encode())
        total.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()


# ---- torch.distributed.checkpoint ----

WRITERS = {
    "default": {},
    "a-file-a-tensor": dict(single_file_per_rank=False),
    "threads-not-synced": dict(thread_count=3, sync_files=False),
}


def save_by_each_writer(rank, directory):
    for name, options in WRITERS.items():
        dcp.save(distributed_state(1, SHARDINGS), storage_writer=FileSystemWriter(directory / name, **options))


def load_checkpoint(rank, directory, seed, names):
    """Load by both, cut as it was saved and otherwise; are all equal to what was saved?"""
    answers = []
    for name in names:
        for shardings in (SHARDINGS, RESHARDINGS):
            loaded = emptied(distributed_state(0, shardings))
            dcp.load(loaded, checkpoint_id=directory / name)
            answers.append(same(loaded, state(seed)))
    return answers


def check_checkpoint(directory, seed, reader=FileSystemReader):
    """Loaded by one process alone, whole."""
    loaded = emptied(state(0))
    dcp.load(loaded, storage_reader=reader(directory), no_dist=True)
    assert same(loaded, state(seed))


def test_checkpoint(mount, plain, pair):
    """Each kind of writer: the same files; loaded by two in the same and in other parts, and by one."""
    for base in (mount.dir, plain):
        pair.run(save_by_each_writer, base)
    expected = hashes(plain)
    assert sum(name.endswith(".distcp") for name in expected) > 10

    def check():
        assert hashes(mount.dir) == expected
        assert pair.run(load_checkpoint, mount.dir, 1, list(WRITERS)) == [[True] * 6] * 2
        for name in WRITERS:
            check_checkpoint(mount.dir / name, 1)

    training.in_each_state_unmapped(mount, check)


def save(rank, directory, seeds):
    for seed in seeds:
        dcp.save(distributed_state(seed, SHARDINGS if seed % 2 else RESHARDINGS), checkpoint_id=directory)


def test_overwritten(mount, plain, pair):
    """A checkpoint over a checkpoint, in other parts, dirty and sealed: what is loaded is the last."""
    for base in (mount.dir, plain):
        pair.run(save, base / "over", [1, 2])
    mount.wait_sealed()
    for base in (mount.dir, plain):
        pair.run(save, base / "over", [3, 2])
    expected = hashes(plain)

    def check():
        assert hashes(mount.dir) == expected
        assert pair.run(load_checkpoint, mount.dir, 2, ["over"]) == [[True] * 2] * 2
        check_checkpoint(mount.dir / "over", 2)

    training.in_each_state_unmapped(mount, check)


def save_behind_the_back(rank, directory, kind):
    """Save while the training goes on: what is saved is what was when async_save returned."""
    saves = []
    for seed in (1, 2, 3):
        made = distributed_state(seed, SHARDINGS)
        saves.append(dcp.async_save(made, checkpoint_id=directory / f"async-{seed}", async_checkpointer_type=kind))
        for tensor in made["model"].values():
            tensor.to_local().fill_(-1)
        saves[-1].result(timeout=240)


@pytest.mark.parametrize("kind", [
    AsyncCheckpointerType.THREAD, pytest.param(AsyncCheckpointerType.PROCESS, marks=pytest.mark.long)])
def test_async_save(mount, plain, pair, kind):
    """async_save: the tensors change while they are written, the files do not."""
    for base in (mount.dir, plain):
        pair.run(save_behind_the_back, base, kind)
    if kind is AsyncCheckpointerType.PROCESS:
        pair.close()  # and with them the processes that save
    expected = hashes(plain)

    def check():
        assert hashes(mount.dir) == expected
        for seed in (1, 2, 3):
            check_checkpoint(mount.dir / f"async-{seed}", seed)

    training.in_each_state_unmapped(mount, check)


def test_converted(mount, plain, pair):
    """dcp_to_torch_save and torch_save_to_dcp: to one file and back, inside, into and out of the mount."""
    for base in (mount.dir, plain):
        pair.run(save, base / "parts", [1])
        dcp_to_torch_save(base / "parts", base / "whole.pt")
        torch_save_to_dcp(base / "whole.pt", base / "back")
    dcp_to_torch_save(mount.dir / "parts", plain / "out.pt")
    dcp_to_torch_save(plain / "parts", mount.dir / "out.pt")
    expected = hashes(plain)

    def check():
        assert hashes(mount.dir) == expected
        for name in ("whole.pt", "out.pt"):
            assert same(torch.load(mount.dir / name, weights_only=False), state(1))
        check_checkpoint(mount.dir / "back", 1)

    training.in_each_state_unmapped(mount, check)


def save_forever(rank, directory):
    seed = 0
    while True:
        seed += 1
        save(rank, directory, [seed])


@pytest.mark.long
@pytest.mark.parametrize("milliseconds", range(0, 120, 20))
def test_killed_while_saving(mount, plain, pair, milliseconds):
    """SIGKILL of both in a save: other checkpoints are whole, and the torn one is written over."""
    for base in (mount.dir, plain):
        pair.run(save, base / "whole", [3])
    pair.begin(save_forever, mount.dir / "torn")
    wait_for(lambda: (mount.dir / "torn" / METADATA).exists(), 60, "the first checkpoint saved")
    time.sleep(milliseconds / 1000)
    pair.kill()
    mount.wait_sealed()
    mount.remount()
    check_checkpoint(mount.dir / "whole", 3)
    for base in (mount.dir, plain):
        pair.run(save, base / "torn", [2])
        (base / "torn" / ".metadata.tmp").unlink(missing_ok=True)
    assert hashes(mount.dir) == hashes(plain)
    check_checkpoint(mount.dir / "torn", 2)


# ---- safetensors, in parts and consolidated ----


def llama():
    torch.manual_seed(0)
    return models.llama(hidden=32, layers=2, vocabulary=400).eval()


def mapping(names):
    """Which of the files each tensor goes to."""
    return {name: 1 + number % FILES for number, name in enumerate(sorted(names))}


def distributed_llama():
    """The model's tensors cut in two by rows; its norms are whole in both."""
    mesh = init_device_mesh("cpu", (2,))
    return {name: distribute_tensor(tensor, mesh, [Shard(0) if tensor.dim() > 1 else Replicate()])
            for name, tensor in llama().state_dict().items()}


def save_consolidated(rank, directory):
    """By the writer itself, twice over; by both processes afterwards; by one afterwards."""
    made = distributed_llama()
    files = mapping(made)
    for _ in range(2):
        dcp.save(made, storage_writer=HuggingFaceStorageWriter(
            directory / "by-writer", fqn_to_index_mapping=files, save_distributed=True, enable_consolidation=True,
            thread_count=2, thread_count_consolidation=2))
    dcp.save(made, storage_writer=HuggingFaceStorageWriter(
        directory / "parts", fqn_to_index_mapping=files, save_distributed=True))
    for name in ("by-both", "by-one"):
        (directory / name).mkdir(exist_ok=True)
    consolidate_safetensors_files_on_every_rank(directory / "parts", directory / "by-both", files, num_threads=2)
    if rank == 0:
        consolidate_safetensors_files(str(directory / "parts"), str(directory / "by-one"), files)
        for name in ("by-writer", "by-both", "by-one"):
            llama().config.save_pretrained(directory / name)
    torch.distributed.barrier()


def load_parts(rank, directory, names):
    """Load each checkpoint into the parts of this process; are they equal?"""
    expected = llama().state_dict()
    answers = []
    for name in names:
        loaded = {key: torch.zeros_like(tensor) for key, tensor in distributed_llama().items()}
        dcp.load(loaded, storage_reader=HuggingFaceStorageReader(directory / name, thread_count=2))
        answers.append(same(loaded, expected))
    return answers


def test_consolidated(mount, plain, pair):
    """Parts of two processes are put together by each way there is: the same bytes; loaded by all readers."""
    for base in (mount.dir, plain):
        pair.run(save_consolidated, base)
    expected = hashes(plain)
    model = llama()
    for name in ("by-writer", "by-both", "by-one"):
        shards = [expected[f"{name}/model-{number:05d}-of-{FILES:05d}.safetensors"] for number in (1, 2, 3)]
        assert shards == [expected[f"by-one/model-{number:05d}-of-{FILES:05d}.safetensors"] for number in (1, 2, 3)]
        index = json.loads((plain / name / "model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == model.state_dict().keys()

    def check():
        assert hashes(mount.dir) == expected
        for name in ("by-writer", "by-both", "by-one"):
            models.assert_equal(transformers.AutoModelForCausalLM.from_pretrained(mount.dir / name), model)
        assert pair.run(load_parts, mount.dir, ["by-writer", "parts"]) == [[True] * 2] * 2
        for name in ("by-both", "parts"):
            loaded = emptied(model.state_dict())
            dcp.load(loaded, storage_reader=HuggingFaceStorageReader(mount.dir / name), no_dist=True)
            assert same(loaded, model.state_dict())

    training.in_each_state_unmapped(mount, check)


# ---- FSDP ----


def make_network(seed):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(65, 130), torch.nn.ReLU(), torch.nn.Linear(130, 65, bias=False))


def shard_fully(model):
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
    return fully_shard(model, mesh=init_device_mesh("cpu", (2,)))


def wrap(model):
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)


WRAPPERS = {"fully_shard": shard_fully, "FullyShardedDataParallel": wrap}


def train(model, optimizer, steps, seed):
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.full((4, 65), seed + step / 10)).square().mean().backward()
        optimizer.step()


def save_fsdp(rank, directory, wrapper):
    """Train and save in parts and whole, load what is saved into another, train both: digests of all."""
    model = WRAPPERS[wrapper](make_network(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    train(model, optimizer, 3, 1.0)
    weights, moments = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=directory / "parts")
    whole = whole_state(model)
    if rank == 0:
        torch.save(whole, directory / "whole.pt")
    if wrapper == "FullyShardedDataParallel":
        save_by_own_types(rank, directory, model)
    torch.distributed.barrier()
    other, resumed = load_fsdp(directory, wrapper)
    seen = [digest(whole_state(one)) for one in (model, other)]
    train(model, optimizer, 2, 2.0)
    train(other, resumed, 2, 2.0)
    return seen + [digest(whole_state(one)) for one in (model, other)]


def whole_state(model):
    """The whole tensors, in each process."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))


def save_by_own_types(rank, directory, model):
    """As FullyShardedDataParallel itself gives its state: whole, and in parts."""
    with FullyShardedDataParallel.state_dict_type(model, StateDictType.FULL_STATE_DICT):
        whole = model.state_dict()
    if rank == 0:
        torch.save(whole, directory / "whole-own.pt")
    with FullyShardedDataParallel.state_dict_type(model, StateDictType.SHARDED_STATE_DICT):
        dcp.save(model.state_dict(), checkpoint_id=directory / "parts-own")


def load_fsdp(directory, wrapper):
    """A model and its optimizer from the parts that are saved."""
    model = WRAPPERS[wrapper](make_network(1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    weights, moments = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": moments}, checkpoint_id=directory / "parts")
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)
    return model, optimizer


def digest_of_parts(rank, directory, wrapper):
    model, _ = load_fsdp(directory, wrapper)
    return digest(whole_state(model))


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_fsdp(mount, plain, pair, wrapper):
    """Model and optimizer in parts by both, whole by one: loaded, they are equal and train on equally."""
    results = [pair.run(save_fsdp, base, wrapper) for base in (mount.dir, plain)]
    (before, loaded, after, resumed) = results[0][0]
    assert results == [[[before, loaded, after, resumed]] * 2] * 2
    assert (loaded, resumed) == (before, after)
    assert before != after
    expected = hashes(plain)

    def check():
        assert hashes(mount.dir) == expected
        for name in (name for name in expected if name.endswith(".pt")):
            assert digest(torch.load(mount.dir / name)) == before
        assert pair.run(digest_of_parts, mount.dir, wrapper) == [before] * 2

    training.in_each_state_unmapped(mount, check)


# ---- save_pretrained by one of them, or by both ----


def save_pretrained_by(rank, directory, savers):
    """Some save, then all load what is there."""
    model = llama()
    if rank in savers:
        model.save_pretrained(directory / "model", max_shard_size="20KB")
    torch.distributed.barrier()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(directory / "model")
    return digest(loaded.state_dict()) == digest(model.state_dict())


@pytest.mark.parametrize("savers", [(0,), (0, 1)], ids=["one", "both"])
def test_save_pretrained(mount, plain, pair, savers):
    """Process 0 saves while the other waits, or both save the same at once: both load it as soon as it is there."""
    for base in (mount.dir, plain):
        assert pair.run(save_pretrained_by, base, savers) == [True, True]
    expected = tree_hashes(plain)
    assert len(expected) > 5
    assert tree_hashes(mount.dir) == expected
    assert pair.run(save_pretrained_by, mount.dir, savers) == [True, True]
    training.in_each_state_unmapped(mount, lambda: check_model(mount, expected))


def check_model(mount, expected):
    assert tree_hashes(mount.dir) == expected
    models.assert_equal(transformers.AutoModelForCausalLM.from_pretrained(mount.dir / "model"), llama())
