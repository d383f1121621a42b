"""transformers on the mount: what is saved is what a plain directory gets, and what is loaded is equal."""

import concurrent.futures
import contextlib
import gc
import json
import os
import shutil
import subprocess
import sys
import textwrap

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers.distributed import DistributedConfig
from transformers.distributed.checkpoint import consolidate_distributed_checkpoint

from support import models, training
from support.files import random_bytes, sha256, write_file

SMALL = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, vocab_size=200)
VISION = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=32,
              patch_size=8)
TWO_SIDED = dict(d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
                 encoder_attention_heads=4, decoder_attention_heads=4, vocab_size=200)
ARCHITECTURES = {
    "llama": SMALL,
    "mistral": SMALL,
    "qwen2": SMALL,
    "qwen3": SMALL | dict(head_dim=8),
    "gemma3_text": SMALL | dict(head_dim=8),
    "phi3": SMALL | dict(pad_token_id=0),
    "mixtral": SMALL | dict(num_local_experts=4, num_experts_per_tok=2),
    "deepseek_v3": SMALL | dict(
        n_routed_experts=4, n_group=1, topk_group=1, num_experts_per_tok=2, moe_intermediate_size=32,
        first_k_dense_replace=1, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8,
        v_head_dim=8, num_key_value_heads=4),
    "gpt_oss": SMALL | dict(num_local_experts=4, num_experts_per_tok=2, head_dim=8),
    "gpt2": dict(n_embd=32, n_layer=2, n_head=4, vocab_size=200, n_positions=64),
    "opt": SMALL | dict(ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=64),
    "bert": SMALL,
    "roberta": SMALL,
    "t5": dict(d_model=32, d_ff=64, num_layers=2, num_heads=4, d_kv=8, vocab_size=200),
    "bart": TWO_SIDED | dict(max_position_embeddings=64),
    "whisper": TWO_SIDED | dict(max_source_positions=30, max_target_positions=30, pad_token_id=0,
                                bos_token_id=1, eos_token_id=2, decoder_start_token_id=1),
    "vit": VISION,
    "clip": dict(text_config=SMALL, vision_config=VISION, projection_dim=16),
    "llava": dict(text_config=SMALL | dict(model_type="llama"),
                  vision_config=VISION | dict(model_type="clip_vision_model")),
    "mamba2": dict(hidden_size=32, num_hidden_layers=2, vocab_size=200, state_size=8, num_heads=8, head_dim=8,
                   n_groups=1),
}
FAMILIES = {
    "decoders": "llama mistral qwen2 qwen3 gemma3_text phi3 gpt2 opt",
    "experts": "mixtral deepseek_v3 gpt_oss",
    "others": "bert roberta t5 bart whisper vit clip llava mamba2",
}
SHARDS = {100_000: 2, "100KB": 2, "0.1mb": 2, " 40 KB ": 5, 1: 21, "0KB": 21, "50GB": 1, "1TB": 1}
MESSAGES = [{"role": "user", "content": "a model is saved"}, {"role": "assistant", "content": "once ünd ✓"}]


@pytest.fixture(scope="module", autouse=True)
def little_garbage():
    """Collecting garbage is quick: what the libraries made at import is left out."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def small(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return models.llama(hidden=32, layers=2, vocabulary=400).to(dtype).eval()


def tree(root):
    """{relative path: (mode, sha256)} of what is below `root`; of directories without a hash."""
    return {str(path.relative_to(root)): (path.stat().st_mode, sha256(path) if path.is_file() else None)
            for path in sorted(root.rglob("*"))}


def assert_same_trees(mount, plain, check=lambda: None):
    """The mount holds what the plain directory does, in each state; and `check` is so."""
    expected = tree(plain)
    assert expected

    def both():
        assert tree(mount.dir) == expected
        check()

    training.in_each_state_unmapped(mount, both)


def check_equal(found, expected):
    assert found == expected


def what_happens(function, *args, **options):
    """The value of a call, or its exception's type and text."""
    try:
        return function(*args, **options)
    except Exception as problem:
        return type(problem), str(problem)


# ---- save_pretrained ----


@pytest.mark.parametrize("family", FAMILIES)
def test_architectures(mount, plain, family):
    """Models of many architectures, in shards: the files of a plain directory, and loaded equal."""
    made = {}
    for kind in FAMILIES[family].split():
        torch.manual_seed(0)
        made[kind] = transformers.AutoModel.from_config(
            transformers.AutoConfig.for_model(kind, **ARCHITECTURES[kind]))
        for base in (mount.dir, plain):
            made[kind].save_pretrained(base / kind, max_shard_size=models.largest_shard(made[kind], 3))
        assert len(list((plain / kind).glob("model-*-of-*.safetensors"))) >= 3

    def check():
        for kind, model in made.items():
            loaded = transformers.AutoModel.from_pretrained(mount.dir / kind)
            assert type(loaded) is type(model)
            models.assert_equal(loaded, model)

    assert_same_trees(mount, plain, check)


def test_shard_sizes(mount, plain):
    """max_shard_size as a number and as text."""
    model = small()
    for size, shards in SHARDS.items():
        for base in (mount.dir, plain):
            model.save_pretrained(base / str(size), max_shard_size=size)
        assert len(list((plain / str(size)).glob("*.safetensors"))) == shards, size
        assert (plain / str(size) / "model.safetensors.index.json").exists() == (shards > 1)

    def check():
        for size in SHARDS:
            models.assert_equal(transformers.LlamaForCausalLM.from_pretrained(mount.dir / str(size)), model)

    assert_same_trees(mount, plain, check)


def test_variant_beside_others(mount, plain):
    """Variants, whole and in shards, beside the plain weights: each is found by its name."""
    kept = {None: small(1), "fp16": small(2, torch.float16), "ema": small(3)}
    for base in (mount.dir, plain):
        for variant, model in kept.items():
            size = "40KB" if variant else "50GB"
            model.save_pretrained(base / "model", variant=variant, max_shard_size=size)

    def check():
        for variant, model in kept.items():
            models.assert_equal(transformers.AutoModelForCausalLM.from_pretrained(
                mount.dir / "model", variant=variant, dtype=model.dtype), model)

    assert_same_trees(mount, plain, check)


@pytest.mark.parametrize("names", ["all", "some", "none"])
def test_given_state(mount, plain, names):
    """state_dict: other tensors than the model's, a part of them, or none (then no weights are written)."""
    model, other = small(1), small(2, torch.bfloat16)
    state = {name: tensor for name, tensor in other.state_dict().items()
             if names == "all" or names == "some" and "layers.1" in name}
    for base in (mount.dir, plain):
        model.save_pretrained(base / "model", state_dict=dict(state), max_shard_size="10KB")
    assert any((plain / "model").glob("*.safetensors")) == (names != "none")

    def check():
        loaded = transformers.AutoModelForCausalLM.from_pretrained(mount.dir / "model", dtype=torch.bfloat16)
        assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in state.items())

    assert_same_trees(mount, plain, check if state else lambda: None)


def test_not_the_main_process(mount, plain):
    """is_main_process=False makes the directory and writes nothing; what was there stays."""
    small(1).save_pretrained(mount.dir / "full")
    full = tree(mount.dir / "full")
    for base in (mount.dir, plain):
        small(2).save_pretrained(base / "empty", is_main_process=False)
    small(2).save_pretrained(mount.dir / "full", is_main_process=False, max_shard_size="40KB")
    assert tree(plain) == {"empty": ((plain / "empty").stat().st_mode, None)}
    assert os.listdir(mount.dir / "empty") == []
    assert tree(mount.dir / "full") == full


def save_as_one_of_two(rank, directory, meeting):
    """The work of one of two processes that share a model by FSDP. It meets the other at the file `meeting`."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", GLOO_SOCKET_IFNAME="lo")
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory / "model", distributed_config=DistributedConfig(fsdp_size=2))
    model.save_pretrained(directory / "distributed", distributed_checkpoint=True)
    model.save_pretrained(directory / "gathered", max_shard_size="40KB")
    torch.distributed.destroy_process_group()


@pytest.mark.long
def test_distributed_checkpoint(mount, plain, tmp_path):
    """distributed_checkpoint: two processes write their parts of a model, which are put together; or one gathers."""
    model = small()
    for base in (mount.dir, plain):
        model.save_pretrained(base / "model")
        ranks = [training.processes.Process(
            target=save_as_one_of_two, args=(rank, base, tmp_path / f"meeting-{base.name}")) for rank in (0, 1)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(training.SECONDS)
            process.kill()
        assert [process.exitcode for process in ranks] == [0, 0]
        consolidate_distributed_checkpoint(base / "distributed", base / "whole")
        model.config.save_pretrained(base / "whole")

    def check():
        for name in ("gathered", "whole"):
            models.assert_equal(transformers.AutoModelForCausalLM.from_pretrained(mount.dir / name), model)

    assert_same_trees(mount, plain, check)


@pytest.mark.parametrize("original", [True, False])
def test_original_format(mount, plain, original):
    """save_original_format: experts as they are merged in memory, or one by one as they were published."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model("mixtral", **ARCHITECTURES["mixtral"]))
    for base in (mount.dir, plain):
        model.save_pretrained(base / "model", save_original_format=original, max_shard_size="50KB")
    index = json.loads((plain / "model" / "model.safetensors.index.json").read_text())
    assert any("experts.3.w2" in name for name in index["weight_map"]) == original
    assert_same_trees(mount, plain, lambda: models.assert_equal(
        transformers.AutoModelForCausalLM.from_pretrained(mount.dir / "model"), model))


def test_onto_a_file(mount):
    """A file where the directory should be: transformers declines, and the file is as it was."""
    write_file(mount.dir / "model", b"text")
    assert small().save_pretrained(mount.dir / "model") is None
    assert (mount.dir / "model").read_bytes() == b"text"


def test_stale_shards_go_and_nothing_else(mount, plain):
    """Saved with ever fewer shards among other files: what goes and what stays is as in a plain directory."""
    def others(directory):
        (directory / "logs").mkdir(parents=True)
        for name in ("README.md", "model.safetensors.bak", ".tmpAbCdEf", "model-00003-of-00004.bin",
                     "model_extra-00001-of-00002.bin", "pytorch_model-00001-of-00002.bin",
                     "logs/model-00001-of-00002.safetensors.txt"):
            write_file(directory / name, random_bytes(1, 1000))
        small(9).save_pretrained(directory / "logs")
        shutil.copy(directory / "logs" / "model.safetensors", directory / "model-00001-of-00009.safetensors")
        shutil.copy(directory / "logs" / "model.safetensors", directory / "modelx-00001-of-00009.safetensors")
        os.symlink("README.md", directory / "model-00002-of-00004")

    for base in (mount.dir, plain):
        others(base / "model")
    for seed, size in enumerate(("20KB", "60KB", "100KB", "50GB", "60KB")):
        for base in (mount.dir, plain):
            small(seed).save_pretrained(base / "model", max_shard_size=size)
        assert tree(mount.dir) == tree(plain)
        if seed % 2:
            mount.wait_sealed()
    assert (plain / "model" / "README.md").exists()
    assert not (plain / "model" / "model-00001-of-00009.safetensors").exists()
    in_mount, in_plain = (transformers.AutoModelForCausalLM.from_pretrained(base / "model")
                          for base in (mount.dir, plain))
    models.assert_equal(in_mount, in_plain)
    models.assert_equal(in_mount, small(3))  # the unsharded file wins over the newer index, in both
    del in_mount
    assert_same_trees(mount, plain)


def test_into_a_full_tree(mount, plain):
    """By relative path, through a link to a directory, and with names that are not ASCII."""
    model = small()
    for base in (mount.dir, plain):
        (base / "модель v1").mkdir()
        os.symlink("модель v1", base / "latest")
        with contextlib.chdir(base):
            model.save_pretrained("latest/a/b/c/", max_shard_size="40KB")
    for name in ("latest/a/b/c", "модель v1/a/../a/b/c/"):
        models.assert_equal(transformers.AutoModelForCausalLM.from_pretrained(f"{mount.dir}/{name}"), model)
    with contextlib.chdir(mount.dir):
        models.assert_equal(transformers.AutoModelForCausalLM.from_pretrained("./latest/a/b/c"), model)
    assert_same_trees(mount, plain)


# ---- configurations, tokenizers, processors, code ----


def test_generation_config(mount, plain):
    """Saved with a model, alone and under another name; loaded by each way."""
    model = small()
    settings = transformers.GenerationConfig(max_new_tokens=7, do_sample=True, temperature=0.25, top_k=3)
    model.generation_config = settings
    for base in (mount.dir, plain):
        model.save_pretrained(base / "model")
        settings.save_pretrained(base / "alone")
        settings.save_pretrained(base / "alone", config_file_name="fast.json")

    def check():
        load = transformers.GenerationConfig.from_pretrained
        loaded_model = transformers.AutoModelForCausalLM.from_pretrained(mount.dir / "model")
        for loaded in (load(mount.dir / "model"), load(mount.dir / "alone"),
                       load(mount.dir / "alone", "fast.json"), loaded_model.generation_config):
            assert (loaded.max_new_tokens, loaded.temperature, loaded.top_k) == (7, 0.25, 3)

    assert_same_trees(mount, plain, check)


def test_config(mount, plain):
    """A configuration saved, changed and saved again; loaded alone, in a subfolder and with another value."""
    config = small().config
    for base in (mount.dir, plain):
        config.save_pretrained(base / "all" / "text")
        changed = transformers.AutoConfig.from_pretrained(base / "all", subfolder="text", rope_theta=5.0)
        changed.label2id = {"да": 0, "nein": 1}
        changed.save_pretrained(base / "all" / "text")

    def check():
        mine, theirs = (transformers.AutoConfig.from_pretrained(base / "all", subfolder="text").to_dict()
                        for base in (mount.dir, plain))
        assert {**mine, "_name_or_path": ""} == {**theirs, "_name_or_path": ""}

    assert_same_trees(mount, plain, check)


TEMPLATES = {
    "none": None,
    "one": training.TEMPLATE,
    "two": {"default": training.TEMPLATE, "tool_use": "tools: " + training.TEMPLATE},
}


@pytest.mark.parametrize("templates", TEMPLATES)
def test_fast_tokenizer(mount, plain, templates):
    """A fast tokenizer with its chat templates: saved, loaded, given more words, saved over itself."""
    words = models.tokenizer()
    words.chat_template = TEMPLATES[templates]
    for base in (mount.dir, plain):
        words.save_pretrained(base / "files")
        words.save_pretrained(base / "in-config", save_jinja_files=False)
        words.save_pretrained(base / "files", filename_prefix="second")

    def check():
        text = "a model is saved <new> once"
        for name in ("files", "in-config"):
            loaded = transformers.AutoTokenizer.from_pretrained(mount.dir / name)
            assert len(loaded) == len(words)
            assert loaded(text)["input_ids"] == words(text)["input_ids"]
            assert loaded.chat_template == words.chat_template
            if templates != "none":
                assert loaded.apply_chat_template(MESSAGES, tokenize=False) == (
                    "[user] a model is saved\n[assistant] once ünd ✓\n")

    assert_same_trees(mount, plain, check)
    words.add_tokens(["<new>"])
    for base in (mount.dir, plain):
        for name in ("files", "in-config"):
            loaded = transformers.AutoTokenizer.from_pretrained(base / name)
            loaded.add_tokens(["<new>"])
            loaded.save_pretrained(base / name, save_jinja_files=name == "files")
    assert_same_trees(mount, plain, check)


def character_tokenizer(directory):
    """A tokenizer in Python, from a vocabulary file that lies in `directory`."""
    directory.mkdir()
    names = ["[PAD]", "[UNK]", "|", *"abcdefgh"]
    (directory / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    return transformers.Wav2Vec2CTCTokenizer(
        str(directory / "vocab.json"), pad_token="[PAD]", unk_token="[UNK]")


def pair_tokenizer(directory):
    """A tokenizer in Python, from a vocabulary and a list of merges."""
    directory.mkdir()
    (directory / "vocab.json").write_text('{"a</w>":0,"b</w>":1,"<unk>":2,"a":3,"b":4,"ab</w>":5}')
    (directory / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    return transformers.CTRLTokenizer(str(directory / "vocab.json"), str(directory / "merges.txt"))


@pytest.mark.parametrize("make", [character_tokenizer, pair_tokenizer], ids=["characters", "merges"])
def test_slow_tokenizer(mount, plain, make):
    """Tokenizers in Python with files of their own: saved, loaded, saved over themselves."""
    for base in (mount.dir, plain):
        words = make(base / "source")
        words.save_pretrained(base / "words")
        again = transformers.AutoTokenizer.from_pretrained(base / "words")
        again.add_tokens(["<new>"])
        again.save_pretrained(base / "words")
    expected = again("a b ab <new> h")["input_ids"]

    def check():
        loaded = transformers.AutoTokenizer.from_pretrained(mount.dir / "words")
        assert type(loaded) is type(words)
        assert loaded("a b ab <new> h")["input_ids"] == expected

    assert_same_trees(mount, plain, check)


def test_processor(mount, plain):
    """A processor of a feature extractor and a tokenizer, with a template; and the extractor alone."""
    extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=8000)
    sound = torch.linspace(-1, 1, 500).numpy()
    for base in (mount.dir, plain):
        processor = transformers.Wav2Vec2Processor(extractor, character_tokenizer(base / "source"))
        processor.chat_template = training.TEMPLATE
        processor.save_pretrained(base / "processor")
        transformers.AutoProcessor.from_pretrained(base / "processor").save_pretrained(base / "again")
        extractor.save_pretrained(base / "alone")

    def check():
        loaded = transformers.AutoProcessor.from_pretrained(mount.dir / "processor")
        assert type(loaded) is transformers.Wav2Vec2Processor
        assert loaded.tokenizer("abc").input_ids == [3, 4, 5]
        expected = extractor(sound, sampling_rate=8000, return_tensors="pt").input_values
        alone = transformers.AutoFeatureExtractor.from_pretrained(mount.dir / "alone")
        for one in (loaded.feature_extractor, alone):
            assert torch.equal(one(sound, sampling_rate=8000, return_tensors="pt").input_values, expected)

    assert_same_trees(mount, plain, check)


CONFIGURATION = """
    from transformers import PreTrainedConfig

    class TinyConfig(PreTrainedConfig):
        model_type = "tiny-on-the-mount"

        def __init__(self, width=16, **others):
            super().__init__(**others)
            self.width = width
"""
MODELING = """
    import torch
    from transformers import PreTrainedModel

    from .configuration_tiny import TinyConfig

    class TinyModel(PreTrainedModel):
        config_class = TinyConfig

        def __init__(self, config):
            super().__init__(config)
            self.linear = torch.nn.Linear(config.width, config.width)
            self.post_init()

        def forward(self, values):
            return self.linear(values)
"""
LOAD_CUSTOM = """
    import sys, torch, transformers
    source, result, again = sys.argv[1:]
    config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=True)
    model = transformers.AutoModel.from_pretrained(source, trust_remote_code=True)
    code = sys.modules[type(model).__module__].__file__
    with torch.no_grad():
        torch.save({"width": config.width, "out": model(torch.eye(config.width)), "code": code}, result)
    model.save_pretrained(again)
"""


@pytest.mark.long
def test_custom_code(mount, plain, tmp_path, monkeypatch):
    """A model with its own code is saved and loaded with it; the cache of modules is on the mount, too."""
    package = mount.dir / "custom_code_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "configuration_tiny.py").write_text(textwrap.dedent(CONFIGURATION))
    (package / "modeling_tiny.py").write_text(textwrap.dedent(MODELING))
    monkeypatch.syspath_prepend(str(mount.dir))
    try:
        from custom_code_package.configuration_tiny import TinyConfig
        from custom_code_package.modeling_tiny import TinyModel
        TinyConfig.register_for_auto_class()
        TinyModel.register_for_auto_class("AutoModel")
        torch.manual_seed(0)
        model = TinyModel(TinyConfig(width=12))
        for base in (mount.dir, plain):
            model.save_pretrained(base / "model")
    finally:
        for name in [name for name in sys.modules if name.startswith("custom_code_package")]:
            del sys.modules[name]
    expected = tree(plain / "model")
    assert {"configuration_tiny.py", "modeling_tiny.py"} <= expected.keys()
    training.in_each_state_unmapped(mount, lambda: check_equal(tree(mount.dir / "model"), expected))
    result, modules = tmp_path / "result.pt", mount.dir / "modules"
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LOAD_CUSTOM), mount.dir / "model", result,
         mount.dir / "again"],
        env=os.environ | {"HF_MODULES_CACHE": str(modules)}, check=True, cwd="/", timeout=280)
    found = torch.load(result)
    assert found["width"] == 12
    assert torch.equal(found["out"], model(torch.eye(12)).detach())
    assert found["code"].startswith(str(modules))
    training.in_each_state_unmapped(mount, lambda: check_equal(tree(mount.dir / "again"), expected))


# ---- from_pretrained ----

LOADS = {
    "device-map-cpu": dict(device_map="cpu"),
    "device-map-auto": dict(device_map="auto"),
    "device-map-by-name": dict(device_map={"": "cpu"}),
    "dtype": dict(dtype=torch.bfloat16),
    "dtype-name": dict(dtype="float16"),
    "dtype-auto": dict(dtype="auto"),
    "torch-dtype": dict(torch_dtype=torch.float64),
    "low-memory": dict(low_cpu_mem_usage=True),
    "no-low-memory": dict(low_cpu_mem_usage=False),
    "safetensors-only": dict(use_safetensors=True),
    "without-mmap": dict(disable_mmap=True),
    "local": dict(local_files_only=True),
    "other-config": dict(attention_dropout=0.5),
    "eager": dict(attn_implementation="eager"),
}


@pytest.mark.long
def test_load_options(mount, plain):
    """Each way to load: equal to what it loads from a plain directory, and computes the same."""
    for base in (mount.dir, plain):
        small(dtype=torch.float16).save_pretrained(base / "model", max_shard_size="40KB")
    load = transformers.AutoModelForCausalLM.from_pretrained
    words = torch.arange(12)[None]

    expected = {how: load(plain / "model", **options) for how, options in LOADS.items()}

    def check():
        for how, theirs in expected.items():
            mine = load(mount.dir / "model", **LOADS[how])
            models.assert_equal(mine, theirs)
            assert getattr(mine, "hf_device_map", None) == getattr(theirs, "hf_device_map", None), how
            with torch.no_grad():
                assert torch.equal(mine(words).logits, theirs(words).logits), how

    training.in_each_state_unmapped(mount, check)


def test_load_classes(mount, plain):
    """Auto and own classes, of the base model and with another head: the same weights, the same missing."""
    model = small()
    for base in (mount.dir, plain):
        model.save_pretrained(base / "all" / "model", max_shard_size="40KB")

    def check():
        for name in ("AutoModel", "AutoModelForCausalLM", "LlamaModel", "LlamaForCausalLM",
                     "LlamaForSequenceClassification"):
            load = getattr(transformers, name).from_pretrained
            pairs = []
            for base in (mount.dir, plain):
                torch.manual_seed(0)  # of a head that is missing
                pairs.append(load(base / "all", subfolder="model", output_loading_info=True))
            (mine, missing), (theirs, missing_there) = pairs
            models.assert_equal(mine, theirs)
            assert missing == missing_there

    training.in_each_state_unmapped(mount, check)


def load_by_threads(directory):
    model = small()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for loaded in pool.map(transformers.LlamaForCausalLM.from_pretrained, [directory] * 8):
            models.assert_equal(loaded, model)


@pytest.mark.long
def test_loaded_by_threads(mount):
    """Eight threads load models of one directory at once; each has its own equal one.

    In a process of its own: what from_pretrained changes of its module meanwhile, threads restore wrongly.
    """
    small().save_pretrained(mount.dir / "model", max_shard_size="20KB")

    def check():
        process = training.processes.Process(target=load_by_threads, args=(mount.dir / "model",))
        process.start()
        process.join()
        assert process.exitcode == 0

    training.in_each_state_unmapped(mount, check)


@pytest.mark.long
def test_generates(mount, plain):
    """Model and tokenizer write what those from a plain directory write; as a pipeline, too."""
    for base in (mount.dir, plain):
        small().save_pretrained(base / "model")
        models.tokenizer().save_pretrained(base / "model")

    def write(directory):
        writer = transformers.pipeline("text-generation", model=str(directory))
        words = transformers.AutoTokenizer.from_pretrained(directory)
        model = transformers.AutoModelForCausalLM.from_pretrained(directory)
        options = dict(max_new_tokens=20, do_sample=False)
        return (writer("a model is", **options),
                model.generate(**words("a model is", return_tensors="pt"), **options).tolist())

    expected = write(plain / "model")
    assert len(expected[1][0]) == 23
    training.in_each_state_unmapped(mount, lambda: check_equal(write(mount.dir / "model"), expected))


BY_NAME = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk",
           "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk"}
OFFLOADS = {
    "by-name": dict(device_map=BY_NAME, offload_buffers=True),
    "auto": dict(device_map="auto", max_memory={"cpu": 60_000}),
}


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
@pytest.mark.parametrize("where", OFFLOADS)
def test_offloaded(mount, plain, kind, where):
    """Weights stay on the disk: the same files in the offload folder, answers, and model saved from there."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(kind, **ARCHITECTURES[kind])).eval()
    words = torch.arange(12)[None]
    with torch.no_grad():
        answer = model(words).logits
    model.save_pretrained(mount.dir / "model", max_shard_size="40KB")
    model.save_pretrained(plain / "model", max_shard_size="40KB")

    def offload(base):
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            base / "model", offload_folder=base / "offload", **OFFLOADS[where])
        assert "disk" in loaded.hf_device_map.values()
        return loaded

    for base in (plain, mount.dir):
        loaded = offload(base)
        with torch.no_grad():
            assert torch.equal(loaded(words).logits, answer)
        loaded.save_pretrained(base / "saved", max_shard_size="1MB")
        del loaded
    assert any((plain / "offload").iterdir()) == (kind == "mixtral")

    def check():
        with torch.no_grad():
            assert torch.equal(offload(mount.dir)(words).logits, answer)
        models.assert_equal(transformers.AutoModelForCausalLM.from_pretrained(mount.dir / "saved"), model)

    assert_same_trees(mount, plain, check)


# ---- pytorch_model.bin ----


def save_bin(model, directory, shards):
    """As transformers 4 wrote it."""
    model.config.save_pretrained(directory)
    state = model.state_dict()
    if shards == 1:
        torch.save(state, directory / "pytorch_model.bin")
        return
    names, weight_map = list(state), {}
    for number in range(shards):
        file = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        part = {name: state[name] for name in names[number::shards]}
        torch.save(part, directory / file)
        weight_map |= dict.fromkeys(part, file)
    (directory / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}, indent=2) + "\n")


@pytest.mark.parametrize("shards", [1, 3])
def test_bin(mount, plain, shards):
    """pytorch_model.bin, whole or in shards: loads equal, is refused with use_safetensors, is converted."""
    model = small()
    for base in (mount.dir, plain):
        save_bin(model, base / "model", shards)
    load = transformers.AutoModelForCausalLM.from_pretrained

    def check():
        for options in ({}, dict(use_safetensors=False), dict(weights_only=False), dict(device_map="cpu")):
            models.assert_equal(load(mount.dir / "model", **options), model)
        kind, text = what_happens(load, mount.dir / "model", use_safetensors=True)
        assert (kind, text.replace(str(mount.dir), str(plain))) == what_happens(
            load, plain / "model", use_safetensors=True)

    assert_same_trees(mount, plain, check)
    for base in (mount.dir, plain):
        load(base / "model").save_pretrained(base / "model", max_shard_size="40KB")
    assert_same_trees(mount, plain)
    models.assert_equal(load(mount.dir / "model", use_safetensors=True), model)


def test_both_formats(mount, plain):
    """Other weights as .bin beside safetensors: the format that is asked for is loaded."""
    new, old = small(1), small(2)
    for base in (mount.dir, plain):
        new.save_pretrained(base / "model", max_shard_size="40KB")
        save_bin(old, base / "model", 1)
    load = transformers.AutoModelForCausalLM.from_pretrained

    def check():
        models.assert_equal(load(mount.dir / "model"), new)
        models.assert_equal(load(mount.dir / "model", use_safetensors=False), old)

    assert_same_trees(mount, plain, check)


# ---- what is not whole ----


MISSING = {
    "a-shard": ["model-00002-of-00005.safetensors"],
    "the-index": ["model.safetensors.index.json"],
    "the-config": ["config.json"],
    "shards": [f"model-{number:05d}-of-00005.safetensors" for number in range(1, 6)],
}


def test_missing(mount, plain):
    """Where a file is missing, transformers says what it says of a plain directory."""
    for what, names in MISSING.items():
        for base in (mount.dir, plain):
            small().save_pretrained(base / what, max_shard_size="40KB")
            for name in names:
                (base / what / name).unlink()

    def check():
        for what in MISSING:
            (kind, text), expected = (
                what_happens(transformers.AutoModelForCausalLM.from_pretrained, base / what)
                for base in (mount.dir, plain))
            assert (kind, text.replace(str(mount.dir), str(plain))) == expected
            assert issubclass(kind, Exception)

    assert_same_trees(mount, plain, check)
