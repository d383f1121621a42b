"""accelerate on the mount: states and models have the files of a plain directory, and train on equally."""

import gc
import os
import random
import resource
import signal
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")
accelerate = pytest.importorskip("accelerate")

import safetensors.torch
import torch.distributed.checkpoint as dcp
from accelerate.utils import (OffloadedWeightsLoader, ProjectConfiguration, load_checkpoint_in_model, merge_fsdp_weights,
                              offload_state_dict, set_seed)

from support import models, training
from support.distributed import Pair
from support.files import tree_hashes
from support.mounts import wait_for

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

ROWS, WIDTH = 32, 48
FILES = {"model.safetensors", "model_1.safetensors", "optimizer.bin", "scheduler.bin", "sampler.bin",
         "random_states_0.pkl", "custom_checkpoint_0.pkl"}
SECONDS = 60


@pytest.fixture(scope="module", autouse=True)
def little_garbage():
    """Collecting garbage is quick, as accelerate does for each shard: what was made at import is left out."""
    llama()
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two processes, for all tests here."""
    made = Pair(tmp_path_factory.mktemp("pair"))
    yield made
    made.close()


# ---- save_state and load_state ----


class Counter:
    """An object of one's own that is saved with the others; it calls `before_saved`."""

    def __init__(self, before_saved=None):
        self.value = 0
        self.before_saved = before_saved

    def state_dict(self):
        if self.before_saved:
            self.before_saved()
        return {"value": self.value, "history": list(range(self.value))}

    def load_state_dict(self, state):
        assert state["history"] == list(range(state["value"]))
        self.value = state["value"]


class Rows(torch.utils.data.IterableDataset):
    def __iter__(self):
        generator = torch.Generator().manual_seed(7)
        return (torch.randn(WIDTH, generator=generator) for _ in range(ROWS))


class Run:
    """A training of two models that depends on torch's, numpy's and Python's random numbers."""

    def __init__(self, directory=None, seed=0, width=WIDTH, before_saved=None, **project):
        set_seed(seed)
        self.accelerator = accelerate.Accelerator(cpu=True, project_config=ProjectConfiguration(
            project_dir=directory and str(directory), **project))
        first = torch.nn.Sequential(torch.nn.Linear(WIDTH, width), torch.nn.Dropout(0.3), torch.nn.BatchNorm1d(width))
        second = torch.nn.Linear(width, WIDTH)
        optimizer = torch.optim.AdamW([*first.parameters(), *second.parameters()], lr=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
        loader = torch.utils.data.DataLoader(Rows(), batch_size=8)
        self.first, self.second, self.optimizer, self.schedule, self.loader = self.accelerator.prepare(
            first, second, optimizer, schedule, loader)
        self.counter = Counter(before_saved)
        self.accelerator.register_for_checkpointing(self.counter)

    def train(self):
        """One pass over the data."""
        for rows in self.loader:
            noise = random.random() + np.random.random()
            self.accelerator.backward((self.second(self.first(rows)) - rows * noise).square().mean())
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
            self.counter.value += 1

    def save(self, directory=None, **options):
        self.accelerator.save_state(directory and str(directory), **options)

    def load(self, directory=None):
        self.accelerator.load_state(directory and str(directory))
        return self

    def outcome(self):
        """All that a training comes to."""
        return {"first": self.first.state_dict(), "second": self.second.state_dict(),
                "moments": self.optimizer.state_dict()["state"], "rate": self.schedule.get_last_lr(),
                "count": self.counter.value, "next": (random.random(), np.random.random(), torch.rand(1))}


def same(left, right):
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def trained(passes):
    run = Run()
    for _ in range(passes):
        run.train()
    return run


def check_goes_on(directory, expected):
    """What is loaded into another run, trained on, comes to the same."""
    run = Run(seed=99).load(directory)
    run.train()
    assert same(run.outcome(), expected)


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "pickle"])
def test_state(mount, plain, safe):
    """Models, optimizer, schedule, sampler, random numbers and an object of one's own; saved over itself, too."""
    run = trained(1)
    for base in (mount.dir, plain):
        run.save(base / "state", safe_serialization=safe)
        run.save(base / "over", safe_serialization=safe)
    mount.wait_sealed()
    run.train()
    for base in (mount.dir, plain):
        run.save(base / "over", safe_serialization=safe)
    expected = tree_hashes(plain)
    names = FILES if safe else {name.replace("model", "pytorch_model").replace(".safetensors", ".bin")
                                for name in FILES}
    assert {name.removeprefix("state/") for name in expected if name.startswith("state/")} >= names - {"sampler.bin"}
    run.train()
    outcome = run.outcome()

    def check():
        assert tree_hashes(mount.dir) == expected
        check_goes_on(mount.dir / "over", outcome)
        twice = Run(seed=98).load(mount.dir / "state")
        twice.train()
        twice.train()
        assert same(twice.outcome(), outcome)

    training.in_each_state_unmapped(mount, check)


@pytest.mark.long
def test_automatic_names(mount, plain):
    """automatic_checkpoint_naming with a limit: the oldest go, the last is loaded without being named."""
    kept = ["checkpoint_2", "checkpoint_3"]
    for base in (plain, mount.dir):
        run = Run(base, automatic_checkpoint_naming=True, total_limit=2)
        for number in range(4):
            run.train()
            run.save()
            assert len(os.listdir(base / "checkpoints")) == min(number + 1, 2)
        run.train()
        outcome = run.outcome()
    expected = tree_hashes(plain)
    assert sorted(os.listdir(mount.dir / "checkpoints")) == kept

    def check():
        assert tree_hashes(mount.dir) == expected
        again = Run(mount.dir, seed=99, automatic_checkpoint_naming=True, total_limit=2).load()
        again.train()
        assert same(again.outcome(), outcome)

    training.in_each_state_unmapped(mount, check)
    again = Run(mount.dir, automatic_checkpoint_naming=True, total_limit=2, iteration=4).load()
    again.save()
    assert sorted(os.listdir(mount.dir / "checkpoints")) == ["checkpoint_3", "checkpoint_4"]


def run_of_two(seed=0):
    """One of two processes that train together."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    run = Run(seed=seed)
    assert run.accelerator.num_processes == 2
    return run


def save_together(rank, directory, outcome):
    run = run_of_two()
    run.train()
    run.save(directory / "state")
    run.accelerator.save_model(run.first, directory / "model", max_shard_size="2KB")
    run.train()
    torch.save(run.outcome(), f"{outcome}-{rank}")


def load_together(rank, directory, outcome):
    run = run_of_two(seed=99).load(directory / "state")
    run.train()
    return same(run.outcome(), torch.load(f"{outcome}-{rank}", weights_only=False))


@pytest.mark.long
def test_two_processes(mount, plain, pair, tmp_path):
    """Two processes save one state, each its random numbers; both load it, and one loads it alone."""
    for base in (mount.dir, plain):
        pair.run(save_together, base, tmp_path / "outcome")
    expected = tree_hashes(plain)
    assert {"state/random_states_0.pkl", "state/random_states_1.pkl", "model/model.safetensors.index.json"
            } <= expected.keys()

    def check():
        assert tree_hashes(mount.dir) == expected
        assert pair.run(load_together, mount.dir, tmp_path / "outcome") == [True, True]
        alone, whole = Run(seed=99), Run(seed=98)
        load_checkpoint_in_model(whole.first, mount.dir / "model")
        wrapped = safetensors.torch.load_file(mount.dir / "state" / "model.safetensors")
        alone.first.load_state_dict({name.removeprefix("module."): tensor for name, tensor in wrapped.items()})
        assert same(alone.first.state_dict(), whole.first.state_dict())

    training.in_each_state_unmapped(mount, check)


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "pickle"])
def test_merged_parts(mount, plain, safe):
    """merge_fsdp_weights: a distributed checkpoint becomes one file, inside and out of the mount."""
    accelerate.PartialState(cpu=True)
    state = llama().state_dict()
    for base in (mount.dir, plain):
        dcp.save({"model": state}, checkpoint_id=base / "parts", no_dist=True)
        merge_fsdp_weights(base / "parts", base / "whole", safe_serialization=safe)
    merge_fsdp_weights(mount.dir / "parts", plain / "out", safe_serialization=safe)
    merge_fsdp_weights(plain / "parts", mount.dir / "out", safe_serialization=safe)
    expected = {name: digest for name, digest in tree_hashes(plain).items() if ".metadata" not in name}
    assert len(expected) == 3

    def check():
        found = tree_hashes(mount.dir)
        assert found.keys() == expected.keys() | {"parts/.metadata"}
        assert {name: found[name] for name in expected} == expected
        loaded = llama(1)
        load_checkpoint_in_model(loaded, str(next((mount.dir / "whole").iterdir())))
        models.assert_equal(loaded, llama())

    training.in_each_state_unmapped(mount, check)


# ---- killed ----

WIDE = 4000  # the models' files are 0.8 and 0.8 MB, the optimizer's is 3 MB


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def limit_files(size):
    """A file that is written past `size` bytes ends the process."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def save_and_die(base, how, log):
    """Save two states; the second is the end of the process."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), 2)
    torch.set_num_threads(1)
    run = Run(width=WIDE)
    run.train()
    run.save(base / "first")
    run.train()
    if how == "in-the-model":
        limit_files(500_000)
    if how == "in-the-optimizer":
        limit_files(2_000_000)
    if how == "in-the-object":
        run.counter.before_saved = die
    while True:
        run.save(base / "second")


def saved_by_the_dying(base, how):
    """What a process that ends while it saves leaves."""
    process = training.processes.Process(target=save_and_die, args=(base, how, f"{base}.{how}.log"), daemon=True)
    process.start()
    if how.isdigit():
        wait_for(lambda: (base / "second").exists(), SECONDS, "the second save has begun")
        time.sleep(int(how) / 1000)
        process.kill()
    process.join(SECONDS)
    process.kill()
    return process.exitcode


def save_whole(base):
    """The same, not killed."""
    torch.set_num_threads(1)
    run = Run(width=WIDE)
    run.train()
    run.save(base / "first")
    run.train()
    run.save(base / "second")
    run.train()
    torch.save(run.outcome(), f"{base}.outcome")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of two saves, and what comes of another pass after them."""
    base = tmp_path_factory.mktemp("whole") / "run"
    base.mkdir()
    process = training.processes.Process(target=save_whole, args=(base,), daemon=True)
    process.start()
    process.join(SECONDS)
    assert process.exitcode == 0
    return tree_hashes(base), torch.load(f"{base}.outcome", weights_only=False)


def done_again(mount, whole):
    """After a kill: the first state is whole, the second is saved again, and trained on."""
    expected, outcome = whole
    found = tree_hashes(mount.dir)
    assert {name: found[name] for name in expected if name.startswith("first/")} == {
        name: expected[name] for name in expected if name.startswith("first/")}
    run = Run(seed=99, width=WIDE).load(mount.dir / "first")
    run.train()
    run.save(mount.dir / "second")

    def check():
        found = tree_hashes(mount.dir)
        assert {name: found[name] for name in found if ".tmp" not in name} == expected
        run = Run(seed=99, width=WIDE).load(mount.dir / "second")
        run.train()
        assert same(run.outcome(), outcome)

    training.in_each_state_unmapped(mount, check)


@pytest.mark.parametrize("how", ["in-the-model", "in-the-optimizer", "in-the-object"])
def test_killed_in_a_file(mount, plain, whole, how):
    """Killed in a certain file of a save: as in a plain directory; the one before is whole; it is done again."""
    torch.set_num_threads(1)
    left = []
    for base in (mount.dir, plain):
        code = saved_by_the_dying(base, how)
        assert code == -(signal.SIGKILL if how == "in-the-object" else signal.SIGXFSZ)
        left.append(sorted((".tmp" if ".tmp" in path.name else path.name, path.stat().st_size)
                           for path in (base / "second").iterdir()))
    assert left[0] == left[1]
    assert 0 < len(left[0]) < len(FILES)
    mount.wait_sealed()
    mount.remount()
    done_again(mount, whole)


@pytest.mark.long
@pytest.mark.parametrize("milliseconds", range(0, 50, 5))
def test_killed_while_saving(mount, whole, milliseconds):
    """SIGKILL at some moment of a save."""
    torch.set_num_threads(1)
    assert saved_by_the_dying(mount.dir, str(milliseconds)) == -signal.SIGKILL
    mount.remount()
    done_again(mount, whole)


# ---- models: in shards, offloaded ----

ON_DISK = {"model.embed_tokens": "cpu", "model.layers.0": "disk", "model.layers.1": "cpu", "model.norm": "cpu",
           "model.rotary_emb": "cpu", "lm_head": "disk"}
SIZES = {"one": "10GB", "several": "40KB"}


def llama(seed=0):
    torch.manual_seed(seed)
    return models.llama(hidden=32, layers=2, vocabulary=400).eval()


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "pickle"])
@pytest.mark.parametrize("size", SIZES)
def test_model(mount, plain, safe, size):
    """save_model in shards or not, over others: the same files, loaded by load_checkpoint_in_model."""
    model = llama()
    accelerator = accelerate.Accelerator(cpu=True)
    for base in (mount.dir, plain):
        accelerator.save_model(llama(1), base / "model", max_shard_size="20KB", safe_serialization=safe)
        accelerator.save_model(model, base / "model", max_shard_size=SIZES[size], safe_serialization=safe)
        for stale in (base / "model").glob("*.index.json"):
            if size == "one":
                stale.unlink()  # it names the former shards
    expected = tree_hashes(plain)
    assert sum("-of-00005." in name for name in expected) == (0 if size == "one" else 5)

    def check():
        assert tree_hashes(mount.dir) == expected
        loaded = llama(2)
        load_checkpoint_in_model(loaded, mount.dir / "model")
        models.assert_equal(loaded, model)
        loaded = accelerate.load_checkpoint_and_dispatch(llama(2), mount.dir / "model", device_map={"": "cpu"})
        models.assert_equal(loaded, model)

    training.in_each_state_unmapped(mount, check)


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "pickle"])
def test_offloaded(mount, plain, safe):
    """Weights stay in a folder of the mount: the same files there, the same answers, saved from there again."""
    model, words = llama(), torch.arange(12)[None]
    accelerator = accelerate.Accelerator(cpu=True)
    with torch.no_grad():
        answer = model(words).logits

    def offload(base):
        with accelerate.init_empty_weights():
            loaded = llama(2)
        return accelerate.load_checkpoint_and_dispatch(
            loaded, base / "model", device_map=dict(ON_DISK), offload_folder=base / "offload",
            offload_state_dict=True, offload_buffers=True).eval()

    for base in (plain, mount.dir):
        accelerator.save_model(model, base / "model", max_shard_size="40KB", safe_serialization=safe)
        loaded = offload(base)
        with torch.no_grad():
            assert torch.equal(loaded(words).logits, answer)
        accelerator.save_model(loaded, base / "again", max_shard_size="40KB")
        del loaded
        gc.collect()
    expected = tree_hashes(plain)
    assert sum(name.startswith("again/") for name in expected) == 6

    def check():
        assert tree_hashes(mount.dir) == expected
        with torch.no_grad():
            assert torch.equal(offload(mount.dir)(words).logits, answer)
        loaded = llama(2)
        load_checkpoint_in_model(loaded, mount.dir / "again")
        models.assert_equal(loaded, model)

    training.in_each_state_unmapped(mount, check)


def test_disk_offload(mount, plain):
    """disk_offload and offload_state_dict: one file a tensor, mapped when it is needed."""
    words = torch.arange(12)[None]
    with torch.no_grad():
        answer = llama()(words).logits
    state = llama().state_dict() | {"half": torch.randn(9, 5).bfloat16(), "scalar": torch.tensor(2.5)}
    for base in (plain, mount.dir):
        offload_state_dict(base / "state", state)
        model = accelerate.disk_offload(llama(), base / "weights", execution_device=torch.device("cpu"))
        with torch.no_grad():
            assert torch.equal(model(words).logits, answer)
        del model
        gc.collect()
    expected = tree_hashes(plain)
    assert len(expected) > 40

    def check():
        assert tree_hashes(mount.dir) == expected
        weights = OffloadedWeightsLoader(save_folder=mount.dir / "state")
        assert set(weights) == set(state)
        for name, tensor in state.items():
            assert weights[name].dtype == tensor.dtype
            assert torch.equal(weights[name], tensor)
        model = accelerate.disk_offload(llama(), mount.dir / "weights", execution_device=torch.device("cpu"))
        with torch.no_grad():
            assert torch.equal(model(words).logits, answer)

    training.in_each_state_unmapped(mount, check)
