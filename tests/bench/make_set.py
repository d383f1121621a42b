"""Make the checkpoints that are backed up: make_set.py DIRECTORY BYTES

Below DIRECTORY, from a seed and nothing else, with a base model of about BYTES bytes in bfloat16:

    base/                the model, in shards
    tuned-1 … tuned-3/   fine-tunes, of which each changed another quarter of the layers
    lora/checkpoint-N/   five states of an adapter, saved beside the base
    run/checkpoint-N/    ten states of a training: weights, and the optimizer's state in float32. From the
                         sixth on half of the layers is frozen: their weights stay, and the optimizer has
                         nothing of them
    copies/              two plain copies of the base
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

LAYERS = 16
SHARDS = 4
RANK = 8
FROZEN_FROM = 6  # the checkpoint since which half of the layers is


class Numbers:
    """Weights that look like weights, by the name of a tensor and its generation."""

    def __init__(self):
        self.generator = torch.Generator()

    def of(self, *seed, shape, scale=0.02):
        self.generator.manual_seed(hash_of(seed))
        return torch.randn(shape, generator=self.generator) * scale


def hash_of(words):
    value = 0
    for word in words:
        for byte in str(word).encode() + b"/":
            value = (value * 1_000_003 + byte) % (1 << 62)
    return value


numbers = Numbers()


def shapes(size):
    """{name: shape} of a model of about `size` bytes: a layer has four matrices and a vector."""
    hidden = max(16, int((size / 2 / LAYERS / 8) ** 0.5) // 8 * 8)
    found = {}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        found |= {f"{prefix}.q.weight": (hidden, hidden), f"{prefix}.o.weight": (hidden, hidden),
                  f"{prefix}.up.weight": (3 * hidden, hidden), f"{prefix}.down.weight": (hidden, 3 * hidden),
                  f"{prefix}.norm.weight": (hidden,)}
    return found


def layer_of(name):
    return int(name.split(".")[2])


def weights(of, generation_of_layer):
    """`generation_of_layer` says whose numbers a layer has."""
    return {name: numbers.of(name, generation_of_layer(layer_of(name)), shape=shape).to(torch.bfloat16)
            for name, shape in of.items()}


def save_model(directory, tensors):
    directory.mkdir(parents=True)
    each = LAYERS // SHARDS
    index = {}
    for shard in range(SHARDS):
        name = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        part = {key: tensor for key, tensor in tensors.items() if layer_of(key) // each == shard}
        save_file(part, directory / name, metadata={"format": "pt"})
        index |= dict.fromkeys(part, name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}, indent=1))
    (directory / "config.json").write_text(json.dumps({"num_hidden_layers": LAYERS}, indent=1))


def save_lora(root, of):
    for step in range(1, 6):
        directory = root / "lora" / f"checkpoint-{step * 100}"
        directory.mkdir(parents=True)
        adapter = {}
        for name, shape in of.items():
            if len(shape) == 2:
                adapter[f"{name}.lora_A"] = numbers.of(name, "A", step, shape=(RANK, shape[1]))
                adapter[f"{name}.lora_B"] = numbers.of(name, "B", step, shape=(shape[0], RANK))
        save_file(adapter, directory / "adapter_model.safetensors")
        (directory / "adapter_config.json").write_text(json.dumps({"r": RANK}))


def save_run(root, of):
    for step in range(1, 11):
        def generation(layer, step=step):
            return f"run-{min(step, FROZEN_FROM - 1) if layer < LAYERS // 2 else step}"

        directory = root / "run" / f"checkpoint-{step * 100}"
        save_model(directory, weights(of, generation))
        trained = {name: shape for name, shape in of.items()
                   if step < FROZEN_FROM or layer_of(name) >= LAYERS // 2}
        state = {name: {"exp_avg": numbers.of(name, step, "m", shape=shape, scale=1e-4),
                        "exp_avg_sq": numbers.of(name, step, "v", shape=shape, scale=1e-6)}
                 for name, shape in trained.items()}
        torch.save({"state": state, "step": step}, directory / "optimizer.pt")
        (directory / "trainer_state.json").write_text(json.dumps({"global_step": step * 100}))


def main():
    root, size = Path(sys.argv[1]), int(sys.argv[2])
    of = shapes(size)
    save_model(root / "base", weights(of, lambda layer: "base"))
    for number in range(1, 4):
        def generation(layer, number=number):
            return f"tuned-{number}" if layer % 4 == number else "base"

        save_model(root / f"tuned-{number}", weights(of, generation))
    save_lora(root, of)
    save_run(root, of)
    for number in range(1, 3):
        shutil.copytree(root / "base", root / "copies" / f"base-{number}")
    for path in root.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors makes its files 0600


if __name__ == "__main__":
    main()
