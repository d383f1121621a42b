"""Tensors as numpy and Python's safetensors write and read them."""

import io
import json

import numpy as np
import safetensors.numpy


def npy(array, version=None):
    """What numpy.save writes of it."""
    out = io.BytesIO()
    np.lib.format.write_array(out, array, version)
    return out.getvalue()


def model(directory, variant=""):
    """{name: array} of a directory, as its index, or the only shard, has it."""
    index = directory / f"model.safetensors.index{variant}.json"
    if not index.exists():
        path = directory / f"model{variant}.safetensors"
        return safetensors.numpy.load_file(path) if path.exists() else {}
    names = json.loads(index.read_text())["weight_map"]
    loaded = {name: safetensors.numpy.load_file(directory / name) for name in set(names.values())}
    assert sum(len(tensors) for tensors in loaded.values()) == len(names)
    return {name: loaded[shard][name] for name, shard in names.items()}
