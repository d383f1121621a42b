"""save_pretrained into the mount and into a plain directory: the same files, and models that load equal."""

import os
import shutil
import subprocess

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from support import models
from support.files import tree_hashes

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def save(model, directory, **options):
    model.save_pretrained(directory, max_shard_size=models.largest_shard(model, 4), **options)
    models.tokenizer().save_pretrained(directory)


def load(model, directory):
    return type(model).from_pretrained(directory, dtype=model.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", models.KINDS)
def test_same_files_and_equal_models(mount, plain, kind, dtype):
    """Same names and sha256 as in a plain directory; equal tensors from the mount: dirty, sealed, remounted."""
    model = models.make(kind, DTYPES[dtype])
    save(model, plain / "model")
    save(model, mount.dir / "model")
    expected = tree_hashes(plain)
    assert sum(name.endswith(".safetensors") for name in expected) >= 3
    assert tree_hashes(mount.dir) == expected
    models.assert_equal(load(model, mount.dir / "model"), model)
    status = mount.wait_sealed()
    assert (status["wrong"], status["incomplete"]) == (0, 0)
    assert tree_hashes(mount.dir) == expected
    models.assert_equal(load(model, mount.dir / "model"), model)
    mount.remount()
    assert tree_hashes(mount.dir) == expected
    models.assert_equal(load(model, mount.dir / "model"), model)


def test_same_answers(mount):
    """Model and tokenizer from the mount compute what the originals do."""
    model = models.make("llama", torch.float32)
    save(model, mount.dir / "model")
    mount.remount()
    loaded = load(model, mount.dir / "model")
    words = transformers.AutoTokenizer.from_pretrained(mount.dir / "model")
    inputs = words("a model is read", return_tensors="pt")
    assert inputs["input_ids"].shape[1] == 4
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=inputs["input_ids"]).logits,
                           model(input_ids=inputs["input_ids"]).logits)


def test_saved_over_itself(mount, plain):
    """Saved again into the same directory, then with fewer shards: old shards go, none stays behind."""
    model, other = models.make("llama", torch.float32), models.make("llama", torch.float32, seed=1)
    save(model, mount.dir / "model")
    save(other, mount.dir / "model")
    save(other, plain / "model")
    assert tree_hashes(mount.dir) == tree_hashes(plain)
    mount.wait_sealed()
    for directory in (mount.dir, plain):
        other.save_pretrained(directory / "model", max_shard_size=models.largest_shard(model, 2))
    assert tree_hashes(mount.dir) == tree_hashes(plain)
    models.assert_equal(load(other, mount.dir / "model"), other)


def test_saved_while_loaded_from_there(mount):
    """A model that is still mapped from the mount is saved over its own shards."""
    model = models.make("bert", torch.float32)
    save(model, mount.dir / "model")
    mount.remount()
    loaded = load(model, mount.dir / "model")
    save(loaded, mount.dir / "model")
    models.assert_equal(loaded, model)
    mount.wait_sealed()
    models.assert_equal(load(model, mount.dir / "model"), model)


def test_variant(mount, plain):
    """Shards of a variant beside the plain ones."""
    model = models.make("gpt2", torch.float16)
    for directory in (mount.dir, plain):
        save(model, directory / "model")
        save(model, directory / "model", variant="fp16")
    assert tree_hashes(mount.dir) == tree_hashes(plain)
    loaded = type(model).from_pretrained(mount.dir / "model", variant="fp16", dtype=model.dtype)
    models.assert_equal(loaded, model)


@pytest.mark.parametrize("command", [["cp", "-r"], ["cp", "-a"], ["rsync", "-a"], "tar", "copytree"],
                         ids=lambda command: command if isinstance(command, str) else command[0] + command[1])
def test_copied_in_and_out(mount, plain, command):
    """A model goes in and out by the tools that people use, and is the same."""
    model = models.make("llama", torch.bfloat16)
    save(model, plain / "model")

    def copy(source, target):
        if command == "copytree":
            shutil.copytree(source, target)
        elif command == "tar":
            target.mkdir()
            archive = subprocess.run(["tar", "-C", source, "-cf", "-", "."], check=True, stdout=subprocess.PIPE)
            subprocess.run(["tar", "-C", target, "-xf", "-"], check=True, input=archive.stdout)
        elif not shutil.which(command[0]):
            pytest.skip(f"there is no {command[0]} here")
        else:
            target.mkdir()
            subprocess.run([*command, f"{source}/.", target], check=True)

    copy(plain / "model", mount.dir / "model")
    mount.wait_sealed()
    copy(mount.dir / "model", mount.dir / "again")
    copy(mount.dir / "again", plain / "out")
    expected = tree_hashes(plain / "model")
    assert tree_hashes(mount.dir / "model") == expected
    assert tree_hashes(mount.dir / "again") == expected
    assert tree_hashes(plain / "out") == expected
    mount.remount()
    models.assert_equal(load(model, mount.dir / "again"), model)


def test_torch_save(mount):
    """torch.save and torch.load, mapped too: optimizer states are not safetensors."""
    state = {"step": 3, "exp_avg": torch.randn(1000, 300), "small": torch.arange(5)}
    torch.save(state, mount.dir / "optimizer.pt")
    for settle in (lambda: None, mount.wait_sealed, mount.remount):
        settle()
        for mapped in (False, True):
            loaded = torch.load(mount.dir / "optimizer.pt", mmap=mapped)
            assert loaded["step"] == 3
            assert torch.equal(loaded["exp_avg"], state["exp_avg"])
            del loaded  # a mapping keeps the mount busy
    status = mount.status()
    assert status["reports"] == []


@pytest.mark.parametrize("consolidate", [False, True])
def test_distributed_checkpoint(mount, consolidate):
    """torch.distributed.checkpoint writes safetensors, with its consolidation (header, close, append)."""
    checkpoint = pytest.importorskip("torch.distributed.checkpoint")
    try:
        from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
    except ImportError:
        pytest.skip("this torch has no HuggingFaceStorageWriter")
    state = {f"layer.{n}.weight": torch.randn(200, 100 + n) for n in range(6)}
    path = str(mount.dir / "dcp")
    mapping = {name: 1 + number // 3 for number, name in enumerate(state)}
    options = dict(save_distributed=True, enable_consolidation=True) if consolidate else {}
    writer = HuggingFaceStorageWriter(path, fqn_to_index_mapping=mapping, **options)
    checkpoint.save(state, storage_writer=writer, no_dist=True)
    status = mount.wait_sealed()
    assert (status["wrong"], status["incomplete"]) == (0, 0), status["reports"]
    names = [name for name in os.listdir(path) if name.endswith(".safetensors")]
    assert len(names) == 2
    mount.remount()
    loaded = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    checkpoint.load(loaded, storage_reader=HuggingFaceStorageReader(path), no_dist=True)
    assert all(torch.equal(loaded[name], state[name]) for name in state)


@pytest.mark.long
@pytest.mark.timeout(240)
def test_trainer(mount):
    """Trainer with rotation, resumed from its last checkpoint: the right ones are kept, by directory mtime."""
    pytest.importorskip("accelerate")
    model = models.make("llama", torch.float32)
    rows = [{"input_ids": list(range(n, n + 8)), "labels": list(range(n, n + 8))} for n in range(8)]

    def train(steps, resume):
        arguments = transformers.TrainingArguments(
            output_dir=str(mount.dir / "run"), max_steps=steps, save_steps=2, save_total_limit=2,
            per_device_train_batch_size=2, report_to=[], use_cpu=True, disable_tqdm=True, logging_steps=100)
        trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    train(6, None)
    assert sorted(os.listdir(mount.dir / "run")) == ["checkpoint-4", "checkpoint-6"]
    mount.remount()
    trainer = train(8, True)
    assert trainer.state.global_step == 8
    assert sorted(os.listdir(mount.dir / "run")) == ["checkpoint-6", "checkpoint-8"]
    models.assert_equal(load(model, mount.dir / "run" / "checkpoint-8"), model)
    status = mount.wait_sealed()
    assert (status["wrong"], status["incomplete"], status["damaged"]) == (0, 0, 0)
