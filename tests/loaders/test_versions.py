"""Versions of safetensors that write differently, each in a process of its own.

    WEIGHTFS_SAFETENSORS_DIR  where directories safetensors-VERSION are (WEIGHTFS_BUILD, else build/)

0.4.5 to 0.7.0 write under the final name; 0.8.0 renames a temporary file that
is still open.
"""

import importlib.metadata
import os
import pathlib
import subprocess
import sys

import pytest

from support.files import tree_hashes

pytest.importorskip("torch")

ROOT = pathlib.Path(__file__).resolve().parents[2]
VERSIONS = ["0.4.5", "0.5.3", "0.7.0", "0.8.0"]

SCRIPT = """
import sys
import safetensors, torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

action, version, *directories = sys.argv[1:]
assert safetensors.__version__ == version, safetensors.__version__
generator = torch.Generator().manual_seed(0)
models = {}
for number, dtype in enumerate([torch.float32, torch.float16, torch.bfloat16, torch.uint8]):
    models[f"model-{number}.safetensors"] = {
        f"layer.{n}.weight": (torch.rand(70 + n, 301, generator=generator) * 100).to(dtype) for n in range(12)
    } | {"scalar": torch.tensor(3, dtype=dtype), "empty": torch.empty(0, 5, dtype=dtype)}
for directory in directories:
    for name, tensors in models.items():
        path = f"{directory}/{name}"
        if action == "save":
            save_file(tensors, path, metadata={"format": "pt"})
        loaded = load_file(path)
        assert loaded.keys() == tensors.keys()
        assert all(torch.equal(loaded[key], tensors[key]) for key in tensors)
        with safe_open(path, framework="pt") as f:
            assert f.metadata() == {"format": "pt"}
            assert torch.equal(f.get_slice("layer.3.weight")[5:9], tensors["layer.3.weight"][5:9])
"""


def python_path(version):
    """What PYTHONPATH must be for this version; None where it is the environment's own."""
    base = pathlib.Path(os.environ.get("WEIGHTFS_SAFETENSORS_DIR",
                                       os.environ.get("WEIGHTFS_BUILD", ROOT / "build")))
    directory = base / f"safetensors-{version}"
    if (directory / "safetensors").is_dir():
        return str(directory)
    try:
        installed = importlib.metadata.version("safetensors")
    except importlib.metadata.PackageNotFoundError:
        installed = None
    if installed != version:
        pytest.skip(f"safetensors {version} is not in {directory}")
    return None


def run(action, version, *directories):
    """Save into (and load from), or load from, each of the directories."""
    environment = dict(os.environ)
    environment.pop("PYTHONPATH", None)
    path = python_path(version)
    if path:
        environment["PYTHONPATH"] = path
    done = subprocess.run([sys.executable, "-c", SCRIPT, action, version, *directories], env=environment,
                          capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("version", [*(pytest.param(version, marks=pytest.mark.long) for version in VERSIONS[:-1]),
                                     VERSIONS[-1]])
def test_save_and_load(mount, plain, version):
    """Saves the same bytes as into a plain directory; loads them dirty, sealed and after a remount."""
    run("save", version, plain, mount.dir)
    expected = tree_hashes(plain)
    assert len(expected) == 4
    assert tree_hashes(mount.dir) == expected
    status = mount.wait_sealed()
    assert (status["wrong"], status["incomplete"]) == (0, 0)
    mount.remount()
    assert tree_hashes(mount.dir) == expected
    run("load", version, mount.dir)


@pytest.mark.long
def test_saved_by_one_loaded_by_another(mount):
    """What the oldest writes over what the newest wrote, and the reverse, is one set of tensors on the disk."""
    run("save", VERSIONS[-1], mount.dir)
    first = mount.wait_sealed()
    run("save", VERSIONS[0], mount.dir)
    run("load", VERSIONS[-1], mount.dir)
    again = mount.wait_sealed()
    assert again["stored_bytes"] < first["stored_bytes"] * 1.01
    run("save", VERSIONS[-1], mount.dir)
    run("load", VERSIONS[0], mount.dir)
