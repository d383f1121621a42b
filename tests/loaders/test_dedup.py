"""Each tensor once, measured by the disk blocks of the store; and its space back when it goes."""

import os
import shutil
import subprocess

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from support import models
from support.files import MIB, tree_hashes, tree_size
from support.mounts import data_files

SHARD_SIZES = {"base": "24MB", "resharded": "41MB"}


def save(model, directory, shard_size):
    model.save_pretrained(directory, max_shard_size=shard_size)
    models.tokenizer().save_pretrained(directory)


def make_model():
    """About 120 MB in F32."""
    torch.manual_seed(0)
    return models.llama(hidden=512, layers=6, vocabulary=12_000).eval()


def fine_tune(model):
    """Change the last layer alone; the bytes that changed."""
    layer = model.model.layers[-1]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    return sum(p.numel() * p.element_size() for p in layer.parameters())


class Models:
    """Directories base, resharded and tuned on an ordinary disk, and what they are made of."""

    def __init__(self, root):
        self.root = root
        self.model = make_model()
        save(self.model, root / "base", SHARD_SIZES["base"])
        save(self.model, root / "resharded", SHARD_SIZES["resharded"])
        self.tuned = make_model()
        self.layer_bytes = fine_tune(self.tuned)
        save(self.tuned, root / "tuned", SHARD_SIZES["base"])
        self.size = tree_size(root / "base")
        self.one_percent = self.size // 100
        self.hashes = {name: tree_hashes(root / name) for name in ("base", "resharded", "tuned")}
        self.hashes["copy"] = self.hashes["base"]

    def load(self, directory):
        return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    yield Models(root)
    shutil.rmtree(root)


@pytest.fixture
def with_base(mount, saved):
    """The model saved into the mount as "base", sealed; the disk blocks that it takes."""
    empty = mount.disk()
    save(saved.model, mount.dir / "base", SHARD_SIZES["base"])
    mount.wait_sealed()
    grown = mount.disk() - empty
    assert 0.99 * saved.size < grown < 1.02 * saved.size
    return mount


def growth(mount, action):
    """Bytes of disk blocks that `action` adds once all is sealed, and after an unmount."""
    before = mount.disk()
    action()
    mount.wait_sealed()
    settled = mount.disk() - before
    mount.remount()
    return max(settled, mount.disk() - before)


def test_saved_again(with_base, saved):
    """The same model under another name: less than 1 % more."""
    mount = with_base
    grown = growth(mount, lambda: save(saved.model, mount.dir / "again", SHARD_SIZES["base"]))
    assert grown < saved.one_percent
    assert tree_hashes(mount.dir / "again") == saved.hashes["base"]


def test_copied(with_base, saved):
    """cp -r: less than 1 % more, and without the bytes on their way either."""
    mount = with_base
    before = mount.disk()
    subprocess.run(["cp", "-r", mount.dir / "base", mount.dir / "copy"], check=True)
    assert mount.disk() - before < saved.one_percent
    assert growth(mount, lambda: None) < saved.one_percent
    assert tree_hashes(mount.dir / "copy") == saved.hashes["base"]


def test_copied_from_outside(with_base, saved):
    """The same files from another disk: less than 1 % more."""
    mount = with_base
    grown = growth(mount, lambda: shutil.copytree(saved.root / "base", mount.dir / "copy"))
    assert grown < saved.one_percent
    assert tree_hashes(mount.dir / "copy") == saved.hashes["base"]


def test_resharded(with_base, saved):
    """Cut into other shards: less than 1 % more; the shards are composed and load equal."""
    mount = with_base
    grown = growth(mount, lambda: save(saved.model, mount.dir / "resharded", SHARD_SIZES["resharded"]))
    assert grown < saved.one_percent
    names = {directory: sorted(os.listdir(mount.dir / directory)) for directory in ("base", "resharded")}
    assert names["base"] != names["resharded"]
    assert tree_hashes(mount.dir / "resharded") == saved.hashes["resharded"]
    models.assert_equal(saved.load(mount.dir / "resharded"), saved.model)


def test_fine_tuned(with_base, saved):
    """Only the last layer changed: about that layer more."""
    mount = with_base
    grown = growth(mount, lambda: save(saved.tuned, mount.dir / "tuned", SHARD_SIZES["base"]))
    assert saved.layer_bytes * 0.99 < grown < saved.layer_bytes + saved.one_percent
    assert tree_hashes(mount.dir / "tuned") == saved.hashes["tuned"]
    models.assert_equal(saved.load(mount.dir / "tuned"), saved.tuned)


def test_saved_over_itself(with_base, saved):
    """Every shard replaced by an equal one: no more than before."""
    mount = with_base
    grown = growth(mount, lambda: save(saved.model, mount.dir / "base", SHARD_SIZES["base"]))
    assert grown < saved.one_percent
    assert tree_hashes(mount.dir / "base") == saved.hashes["base"]


ORDERS = [
    ("base", "copy", "resharded", "tuned"),
    ("tuned", "resharded", "base", "copy"),
    ("copy", "tuned", "base", "resharded"),
]


def expected_bytes(saved, names):
    """What the store must hold for these checkpoints."""
    if not names:
        return 0
    return saved.size + (saved.layer_bytes if len(set(names) - {"tuned"}) and "tuned" in names else 0)


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_removed(mount, saved, order):
    """Removed in any order: each gives back what it alone had, and leaves the others right."""
    empty = mount.disk()
    for name in ("base", "resharded", "tuned"):
        shutil.copytree(saved.root / name, mount.dir / name)
        mount.wait_sealed()
    subprocess.run(["cp", "-r", mount.dir / "base", mount.dir / "copy"], check=True)
    left = list(order)
    assert mount.wait_disk(empty + expected_bytes(saved, left) + 2 * saved.one_percent)
    for name in order:
        shutil.rmtree(mount.dir / name)
        left.remove(name)
        now = mount.wait_disk(empty + expected_bytes(saved, left) + 2 * saved.one_percent)
        assert now >= 0.99 * expected_bytes(saved, left)
        for other in left:
            assert tree_hashes(mount.dir / other) == saved.hashes[other], (name, other)
    assert mount.wait_sealed()["files"] == 0
    mount.umount()
    assert data_files(mount.store) == []


def test_the_last_one_loads(mount, saved):
    """After the others are gone and the store was mounted anew, the last checkpoint loads equal."""
    for name in ("base", "resharded", "tuned"):
        shutil.copytree(saved.root / name, mount.dir / name)
        mount.wait_sealed()
    shutil.rmtree(mount.dir / "base")
    shutil.rmtree(mount.dir / "resharded")
    mount.remount()
    models.assert_equal(saved.load(mount.dir / "tuned"), saved.tuned)


def test_removed_while_loaded(mount, saved):
    """A checkpoint that is removed while a process has it mapped can be read to the end; then its space comes back."""
    empty = mount.disk()
    shutil.copytree(saved.root / "base", mount.dir / "base")
    mount.wait_sealed()
    safetensors = pytest.importorskip("safetensors.torch")
    name = next(name for name in sorted(os.listdir(mount.dir / "base")) if name.endswith(".safetensors"))
    mapped = safetensors.load_file(mount.dir / "base" / name)
    shutil.rmtree(mount.dir / "base")
    expected = safetensors.load_file(saved.root / "base" / name)
    assert all(torch.equal(mapped[key], expected[key]) for key in expected)
    del mapped
    mount.wait_disk(empty + 4 * MIB)
