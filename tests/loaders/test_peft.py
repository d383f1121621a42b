"""PEFT on the mount: adapters have the files of a plain directory, load onto a base there, and merge into one."""

import contextlib
import gc
import os
import shutil

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model

from support import models, training
from support.files import tree_hashes, tree_size

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::FutureWarning:transformers")

WORDS = torch.arange(12)[None]
PROJECTIONS = ["q_proj", "v_proj"]
TASK = dict(task_type="CAUSAL_LM")
LORA = dict(r=4, target_modules=PROJECTIONS, **TASK)
CONFIGURATIONS = {
    "lora": lambda: peft.LoraConfig(init_lora_weights=False, **LORA),
    "lora-all": lambda: peft.LoraConfig(**TASK, r=8, target_modules="all-linear", lora_alpha=32, bias="all",
                                        use_rslora=True, rank_pattern={"q_proj": 2}),
    "dora": lambda: peft.LoraConfig(use_dora=True, **LORA),
    "modules-to-save": lambda: peft.LoraConfig(modules_to_save=["lm_head", "norm"], **LORA),
    "embeddings": lambda: peft.LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"], **TASK),
    "some-tokens": lambda: peft.LoraConfig(trainable_token_indices=[1, 5, 7], **LORA),
    "adalora": lambda: peft.AdaLoraConfig(target_modules=PROJECTIONS, total_step=10, **TASK),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], **TASK),
    "loha": lambda: peft.LoHaConfig(r=4, target_modules=PROJECTIONS, **TASK),
    "vera": lambda: peft.VeraConfig(r=8, target_modules=PROJECTIONS, **TASK),
    "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=5, **TASK),
    "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=5, **TASK),
}


def llama(seed=0):
    torch.manual_seed(seed)
    return models.llama(hidden=64, layers=2, vocabulary=400).eval()


@pytest.fixture(scope="module", autouse=True)
def little_garbage():
    """Collecting garbage is quick: what the libraries made at import is left out."""
    llama()
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def load_base(directory):
    """The base in `directory`, by a name that does not depend on where this is: adapters note it."""
    with contextlib.chdir(directory):
        return transformers.AutoModelForCausalLM.from_pretrained("base")


@pytest.fixture
def both(mount, plain):
    """The mount and the plain directory, with the same base in each."""
    for directory in (mount.dir, plain):
        llama().save_pretrained(directory / "base", max_shard_size="100KB")
    return mount.dir, plain


def adapt(directory, configuration, seed=5):
    """A new adapter on the base there, its weights random, none of them zero."""
    torch.manual_seed(seed)
    model = get_peft_model(load_base(directory), configuration)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def answer(model):
    with torch.no_grad():
        return model(WORDS).logits


def load_adapted(directory, name, **options):
    return PeftModel.from_pretrained(load_base(directory), directory / name, **options).eval()


def assert_same_files(mount, expected):
    assert tree_hashes(mount.dir) == expected


# ---- saved and loaded ----


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "pickle"])
def test_adapters(mount, plain, both, safe):
    """Adapters of many kinds on one base: the same files; from the mount they compute what they did."""
    kinds, answers = CONFIGURATIONS if safe else ("lora", "modules-to-save", "prompt"), {}
    for name in kinds:
        for directory in both:
            model = adapt(directory, CONFIGURATIONS[name]())
            model.save_pretrained(directory / name, safe_serialization=safe)
            answers[name] = answer(model)
        del model
    plainly = answer(llama())
    assert not any(torch.equal(plainly, one) for one in answers.values())
    expected = tree_hashes(plain)
    weights = "adapter_model.safetensors" if safe else "adapter_model.bin"
    assert all({f"{name}/{weights}", f"{name}/adapter_config.json"} <= expected.keys() for name in kinds)

    def check():
        assert_same_files(mount, expected)
        for name, expected_answer in answers.items():
            assert torch.equal(answer(load_adapted(mount.dir, name)), expected_answer), name
        with contextlib.chdir(mount.dir):
            found = AutoPeftModelForCausalLM.from_pretrained("lora")
        assert torch.equal(answer(found), answers["lora"])

    training.in_each_state_unmapped(mount, check)


def test_several_adapters(mount, plain, both):
    """Adapters beside each other, some of them saved, loaded by name, switched, and combined to new ones."""
    for directory in both:
        model = adapt(directory, CONFIGURATIONS["lora"]())
        for seed, name in enumerate(("second", "third")):
            torch.manual_seed(seed)
            model.add_adapter(name, CONFIGURATIONS["lora"]())
        for kind in ("linear", "cat", "svd"):
            torch.manual_seed(9)
            model.add_weighted_adapter(["default", "second"], [0.7, -0.4], combination_type=kind, adapter_name=kind)
        model.save_pretrained(directory / "all")
        model.save_pretrained(directory / "one", selected_adapters=["third"])
        saved = each_answer(model)
        del model
    expected = tree_hashes(plain)
    assert "all/svd/adapter_model.safetensors" in expected
    assert not any(name.startswith("one/adapter_model") for name in expected)

    def load(directory):
        model = load_adapted(directory, "all")
        for name in saved.keys() - {"default"}:
            model.load_adapter(directory / "all" / name, adapter_name=name)
        return model

    answers = each_answer(load(plain))
    assert answers.keys() == saved.keys() == {"default", "second", "third", "linear", "cat", "svd"}
    assert all(torch.allclose(answers[name], saved[name], atol=1e-5) for name in saved)

    def check():
        assert_same_files(mount, expected)
        found = each_answer(load(mount.dir))
        assert all(torch.equal(found[name], answers[name]) for name in answers)
        assert torch.equal(answer(load_adapted(mount.dir, "one/third")), answers["third"])

    training.in_each_state_unmapped(mount, check)


def each_answer(model):
    """{adapter: what the model computes with it}."""
    answers = {}
    for name in list(model.peft_config):
        model.set_adapter(name)
        answers[name] = answer(model)
    return answers


def test_saved_over_itself(mount, plain, both):
    """An adapter is changed and saved over the files that it was loaded from."""
    for directory in both:
        adapt(directory, CONFIGURATIONS["lora"]()).save_pretrained(directory / "adapter")
    mount.wait_sealed()
    for number in range(3):
        for directory in both:
            model = load_adapted(directory, "adapter", is_trainable=True)
            with torch.no_grad():
                model.base_model.model.model.layers[0].self_attn.q_proj.lora_A["default"].weight.add_(number)
            model.save_pretrained(directory / "adapter")
            last = answer(model)
            del model
    expected = tree_hashes(plain)

    def check():
        assert_same_files(mount, expected)
        assert torch.equal(answer(load_adapted(mount.dir, "adapter")), last)

    training.in_each_state_unmapped(mount, check)


# ---- merged ----


def test_merged(mount, plain, both):
    """merge_and_unload and save, also over the base it was mapped from: loads equal without PEFT."""
    for directory in both:
        adapt(directory, CONFIGURATIONS["lora"]()).save_pretrained(directory / "adapter")
        shutil.copytree(directory / "base", directory / "original")
    gc.collect()
    mount.remount()
    for directory in both:
        merged = load_adapted(directory, "adapter").merge_and_unload()
        merged.save_pretrained(directory / "merged", max_shard_size="100KB")
        merged.save_pretrained(directory / "base", max_shard_size="100KB")
    expected_answer = answer(merged)
    expected_state = {name: tensor.clone() for name, tensor in merged.state_dict().items()}
    del merged
    expected = tree_hashes(plain)
    names = sorted(os.listdir(plain / "base"))
    assert [expected[f"base/{name}"] for name in names] == [expected[f"merged/{name}"] for name in names]

    def check():
        assert_same_files(mount, expected)
        for name in ("base", "merged"):
            loaded = transformers.AutoModelForCausalLM.from_pretrained(mount.dir / name)
            assert torch.equal(answer(loaded), expected_answer)
            assert all(torch.equal(tensor, expected_state[key]) for key, tensor in loaded.state_dict().items())
        original = transformers.AutoModelForCausalLM.from_pretrained(mount.dir / "original")
        models.assert_equal(original, llama())

    training.in_each_state_unmapped(mount, check)


def test_unchanged_tensors_are_stored_once(mount):
    """Merged models beside their base take what the adapter changed; the adapter takes what it is."""
    torch.manual_seed(0)
    models.llama(hidden=256, layers=3, vocabulary=4000).save_pretrained(mount.dir / "base", max_shard_size="4MB")
    whole = mount.wait_sealed()["stored_bytes"]
    assert whole >= tree_size(mount.dir / "base") * 0.99
    model = adapt(mount.dir, CONFIGURATIONS["lora"]())
    model.save_pretrained(mount.dir / "adapter")
    with_adapter = mount.wait_sealed()["stored_bytes"]
    adapter = tree_size(mount.dir / "adapter")
    assert adapter * 0.99 <= with_adapter - whole <= adapter + 10_000
    merged = model.merge_and_unload()
    merged.save_pretrained(mount.dir / "merged", max_shard_size="4MB")
    merged.save_pretrained(mount.dir / "again", max_shard_size="9MB")
    changed = sum(parameter.nbytes for name, parameter in merged.named_parameters()
                  if any(part in name for part in PROJECTIONS))
    names = {directory: len(os.listdir(mount.dir / directory)) for directory in ("merged", "again")}
    assert names["again"] < names["merged"]
    del model, merged
    gc.collect()
    grown = mount.wait_sealed()["stored_bytes"] - with_adapter
    assert changed * 0.99 <= grown <= changed + 100_000 < whole / 4
    mount.remount()
    models.assert_equal(*(transformers.AutoModelForCausalLM.from_pretrained(mount.dir / name)
                          for name in ("merged", "again")))
    gc.collect()


# ---- trained ----


def train(model, optimizer, steps, seed):
    torch.manual_seed(seed)
    model.train()
    for _ in range(steps):
        words = torch.randint(0, 400, (2, 16))
        optimizer.zero_grad()
        model(words, labels=words).loss.backward()
        optimizer.step()
    model.eval()


def optimizer_of(model):
    return torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.01)


@pytest.mark.parametrize("kind", ["lora", "dora", "modules-to-save"])
def test_trained_on(mount, plain, both, kind):
    """Training goes on from a saved adapter and its optimizer as if it had not stopped."""
    for directory in both:
        torch.manual_seed(3)
        model = get_peft_model(load_base(directory), CONFIGURATIONS[kind]())
        optimizer = optimizer_of(model)
        train(model, optimizer, 2, 1)
        model.save_pretrained(directory / "adapter")
        torch.save(optimizer.state_dict(), directory / "adapter" / "optimizer.pt")
        train(model, optimizer, 2, 2)
        model.save_pretrained(directory / "uninterrupted")
        uninterrupted = answer(model)
        del model, optimizer
    expected = tree_hashes(plain)

    def check():
        assert_same_files(mount, expected)
        model = load_adapted(mount.dir, "adapter", is_trainable=True)
        optimizer = optimizer_of(model)
        optimizer.load_state_dict(torch.load(mount.dir / "adapter" / "optimizer.pt"))
        train(model, optimizer, 2, 2)
        assert torch.equal(answer(model), uninterrupted)

    training.in_each_state_unmapped(mount, check)
    with contextlib.chdir(mount.dir):
        model = load_adapted(mount.dir, "uninterrupted")
        model.save_pretrained("resumed")
    assert (mount.dir / "resumed" / "adapter_model.safetensors").read_bytes() == (
        plain / "uninterrupted" / "adapter_model.safetensors").read_bytes()
    del model
    gc.collect()


# ---- by transformers itself ----


def test_transformers_adapters(mount, plain, both):
    """add_adapter, save_pretrained and load_adapter of a transformers model; from_pretrained of an adapter."""
    for directory in both:
        model = load_base(directory)
        torch.manual_seed(4)
        model.add_adapter(CONFIGURATIONS["lora"](), adapter_name="first")
        with contextlib.chdir(directory):
            model.save_pretrained("adapter")
        with_adapter = answer(model)
        model.disable_adapters()
        without = answer(model)
        del model
    assert not torch.equal(with_adapter, without)
    expected = tree_hashes(plain)
    assert "adapter/adapter_model.safetensors" in expected

    def check():
        assert_same_files(mount, expected)
        model = load_base(mount.dir)
        assert torch.equal(answer(model), without)
        model.load_adapter(str(mount.dir / "adapter"), adapter_name="loaded")
        assert torch.equal(answer(model), with_adapter)
        model.set_adapter("loaded")
        model.delete_adapter("loaded")
        assert torch.equal(answer(model), without)
        with contextlib.chdir(mount.dir):
            model = transformers.AutoModelForCausalLM.from_pretrained("adapter")
        assert torch.equal(answer(model), with_adapter)
        assert torch.equal(answer(load_adapted(mount.dir, "adapter")), with_adapter)

    training.in_each_state_unmapped(mount, check)
