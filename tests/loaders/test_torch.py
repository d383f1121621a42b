"""torch's own formats on the mount: the bytes of a plain directory, and equal, mapped or not."""

import concurrent.futures
import io
import mmap
import os
import tempfile

import pytest

torch = pytest.importorskip("torch")

from torch.utils.serialization import config as serialization

from support import training
from support.files import MIB, random_bytes, read_file, tree_hashes, write_file
from support.mounts import SETTLES, wait_for
from support.training import in_each_state

FORMATS = {"zip": {}, "legacy": dict(_use_new_zipfile_serialization=False)}
LOADS = {
    "default": {},
    "weights-only": dict(weights_only=True),
    "any-object": dict(weights_only=False),
    "map-location": dict(map_location="cpu"),
    "by-function": dict(map_location=lambda storage, location: storage),
}
MAPPED = dict(mmap=True)
SECONDS = 60


class Network(torch.nn.Module):
    """Two layers that share a weight, a buffer, and a scalar."""

    def __init__(self, width=96):
        super().__init__()
        self.first = torch.nn.Linear(width, width)
        self.second = torch.nn.Linear(width, width, bias=False)
        self.second.weight = self.first.weight
        self.norm = torch.nn.BatchNorm1d(width)

    def forward(self, values):
        return self.second(torch.relu(self.norm(self.first(values))))


def network(seed=0):
    torch.manual_seed(seed)
    return Network()


def trained():
    """A network after some steps, its optimizer and its schedule."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(16, 96)).square().mean().backward()
        optimizer.step()
        schedule.step()
    model.eval()
    return model, optimizer, schedule


def states():
    """What people save, by file name."""
    model, optimizer, schedule = trained()
    return {
        "model.pt": model.state_dict(),
        "optimizer.bin": optimizer.state_dict(),
        "all.ckpt": {"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                     "schedule": schedule.state_dict(), "step": 3, "text": "ключ", "none": None},
        "types.pth": [torch.arange(7).to(dtype) for dtype in (
            torch.float16, torch.bfloat16, torch.int8, torch.bool, torch.complex128, torch.float64)],
        "shapes.pth": {"scalar": torch.tensor(3.5), "empty": torch.empty(0, 4), "nested": (torch.eye(3), [1, 2])},
        "nothing.pth": {},
    }


def same(left, right):
    """Equal all the way down, tensors bit by bit."""
    if isinstance(left, torch.Tensor):
        return (left.dtype, left.shape) == (right.dtype, right.shape) and torch.equal(
            *(one.contiguous().flatten().view(torch.uint8) for one in (left, right)))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


@pytest.mark.parametrize("kind", FORMATS)
def test_saved(mount, plain, kind):
    """Each kind of state, by path and by file object however buffered: the same bytes; loaded equal in each way."""
    saved = states()
    for base in (mount.dir, plain):
        for name, state in saved.items():
            torch.save(state, base / name, **FORMATS[kind])
        for buffering in (0, 1000, -1, MIB):
            with open(base / f"buffered.{buffering}", "wb", buffering=buffering) as f:
                torch.save(saved["all.ckpt"], f, **FORMATS[kind])
        memory = io.BytesIO()
        torch.save(saved["all.ckpt"], memory, **FORMATS[kind])
        write_file(base / "memory", memory.getvalue())
    expected = tree_hashes(plain)

    def check():
        assert tree_hashes(mount.dir) == expected
        for options in LOADS.values():
            for name, state in saved.items():
                assert same(torch.load(mount.dir / name, **options), state), name
        for name in expected.keys() - saved.keys():
            with open(mount.dir / name, "rb") as f:
                assert same(torch.load(f), saved["all.ckpt"])
        if kind == "zip":
            for name, state in saved.items():
                assert same(torch.load(mount.dir / name, **MAPPED), state), name
        else:
            with pytest.raises(RuntimeError, match="mmap"):
                torch.load(mount.dir / "model.pt", **MAPPED)

    in_each_state(mount, check)


def test_layouts(mount, plain):
    """Records aligned to pages, without checksums, and one after the other into a single file."""
    saved = states()
    for base in (mount.dir, plain):
        with serialization.patch({"save.storage_alignment": 4096, "save.compute_crc32": False}):
            torch.save(saved["all.ckpt"], base / "aligned.pt")
        with open(base / "several.bin", "wb") as f:
            for state in saved.values():
                torch.save(state, f, _use_new_zipfile_serialization=False)
        torch.save(trained()[0], base / "module.pt", pickle_protocol=4)
    expected = tree_hashes(plain)

    def check():
        assert tree_hashes(mount.dir) == expected
        assert same(torch.load(mount.dir / "aligned.pt"), saved["all.ckpt"])
        with serialization.patch({"load.calculate_storage_offsets": True, "load.mmap": True}):
            assert same(torch.load(mount.dir / "aligned.pt"), saved["all.ckpt"])
        with open(mount.dir / "several.bin", "rb") as f:
            assert all(same(torch.load(f), state) for state in saved.values())
        module = torch.load(mount.dir / "module.pt", weights_only=False)
        assert same(module.state_dict(), saved["model.pt"])

    in_each_state(mount, check)


def test_shared_storage(mount, plain):
    """Tied weights and views are stored once and are views of one storage when loaded."""
    base_tensor = torch.arange(60_000.)
    state = {"all": base_tensor, "rows": base_tensor.view(300, 200), "part": base_tensor[1000:2000:3],
             "again": base_tensor, "model": network().state_dict()}
    for base in (mount.dir, plain):
        torch.save(state, base / "views.pt")
    expected = tree_hashes(plain)

    def check():
        assert tree_hashes(mount.dir) == expected
        assert (mount.dir / "views.pt").stat().st_size < 1.5 * base_tensor.nbytes
        for options in ({}, MAPPED):
            loaded = torch.load(mount.dir / "views.pt", **options)
            assert same(loaded, state)
            loaded["rows"][5, 5] = -1  # a private mapping: the file does not change
            assert loaded["all"][1005] == loaded["again"][1005] == -1
            assert loaded["model"]["first.weight"].data_ptr() == loaded["model"]["second.weight"].data_ptr()

    in_each_state(mount, check)


def test_shorter_and_longer(mount, plain):
    """Saved over the same name again and again, shorter and longer: nothing of the former stays."""
    path = mount.dir / "model.pt"
    for number, length in enumerate((100_000, 200, 500_000, 0, 30_000, 100_000)):
        state = {"weight": torch.full((length,), float(number))}
        for base in (mount.dir, plain):
            torch.save(state, base / "model.pt")
        assert tree_hashes(mount.dir) == tree_hashes(plain)
        mount.settle(SETTLES[number % 3])
        assert tree_hashes(mount.dir) == tree_hashes(plain)
        assert same(torch.load(path), state)
        assert same(torch.load(path, **MAPPED), state)


def test_saved_aside_and_renamed(mount, plain):
    """The careful way: a temporary file, flushed and synced, is renamed over the former."""
    for number in range(4):
        state = {"weight": torch.full((50_000,), float(number))}
        for base in (mount.dir, plain):
            with tempfile.NamedTemporaryFile(dir=base, delete=False) as f:
                torch.save(state, f)
                f.flush()
                os.fsync(f.fileno())
                os.fchmod(f.fileno(), 0o644)
            os.replace(f.name, base / "model.pt")
            directory = os.open(base, os.O_RDONLY)
            os.fsync(directory)
            os.close(directory)
        mount.settle(SETTLES[number % 3])
        assert tree_hashes(mount.dir) == tree_hashes(plain)
        assert same(torch.load(mount.dir / "model.pt"), state)


@pytest.mark.parametrize("how", SETTLES)
def test_mapping_outlives_its_file(mount, how):
    """What is mapped stays what it was when its file is replaced and when it is removed."""
    path = mount.dir / "model.pt"
    old, new, newest = ({"weight": torch.full((300_000,), value), "bias": torch.arange(5) * value}
                        for value in (1.0, 2.0, 3.0))
    torch.save(old, path)
    mount.settle(how)
    mapped = torch.load(path, **MAPPED)
    torch.save(new, mount.dir / "new.pt")
    os.replace(mount.dir / "new.pt", path)
    second = torch.load(path, **MAPPED)
    path.unlink()
    torch.save(newest, path)
    wait_for(lambda: mount.status()["dirty"] == 0, 60, "all sealed")
    assert same(mapped, old)
    assert same(second, new)
    assert same(torch.load(path), newest)
    mapped["weight"][:] = 7
    del mapped
    assert same(second, new)
    del second
    in_each_state(mount, lambda: check_state(path, newest))


def check_state(path, state):
    assert same(torch.load(path), state)
    assert same(torch.load(path, **MAPPED), state)


@pytest.mark.parametrize("how", SETTLES)
def test_written_over_under_a_mapping(mount, plain, how):
    """Written twice over the name that is mapped: then the mapping shows what it shows on a disk, and so do loads."""
    seen = {}
    for base in (mount.dir, plain):
        torch.save({"weight": torch.full((300_000,), 1.0)}, base / "model.pt")
        if base == mount.dir:
            mount.settle(how)
        mapped = torch.load(base / "model.pt", **MAPPED)
        assert mapped["weight"][1000] == 1.0
        for value in (2.0, 3.0):
            torch.save({"weight": torch.full((300_000,), value)}, base / "model.pt")
        seen[base] = mapped["weight"].unique().tolist()
        check_state(base / "model.pt", {"weight": torch.full((300_000,), 3.0)})
        del mapped
    assert seen[mount.dir] == seen[plain]
    in_each_state(mount, lambda: check_state(mount.dir / "model.pt", {"weight": torch.full((300_000,), 3.0)}))


def test_from_file(mount, plain):
    """A storage that is a shared mapping of a file makes it, grows it and writes to it; a private one does not."""
    for base in (mount.dir, plain):
        path = str(base / "storage.bin")
        made = torch.UntypedStorage.from_file(path, shared=True, nbytes=400_000)
        values = torch.empty(0).set_(made, 0, (100_000,))
        values[:] = torch.arange(100_000.)
        del made, values
        write_file(base / "other.bin", random_bytes(1, 80_000))
        private = torch.from_file(str(base / "other.bin"), shared=False, size=10_000, dtype=torch.int64)
        private[:] = 0
        shared = torch.from_file(str(base / "other.bin"), shared=True, size=5_000, dtype=torch.int64)
        shared[100:200] = 5
        shared[4_999] = 6
        assert private[150] == 0
        del private, shared
    expected = tree_hashes(plain)
    assert (plain / "storage.bin").stat().st_size == 400_000
    for settle in (lambda: None, mount.remount, mount.wait_sealed):
        settle()
        assert tree_hashes(mount.dir) == expected
        assert torch.equal(torch.from_file(str(mount.dir / "storage.bin"), shared=False, size=100_000),
                           torch.arange(100_000.))
    for base in (mount.dir, plain):
        again = torch.from_file(str(base / "storage.bin"), shared=True, size=150_000)  # sealed, and grows
        again[50_000:120_000] = -1
        del again
    mount.remount()
    assert tree_hashes(mount.dir) == tree_hashes(plain) != expected


def test_loaded_by_shared_mapping(mount, plain):
    """torch.load by MAP_SHARED: what is done to the tensors is done to the checkpoint."""
    for base in (mount.dir, plain):
        torch.save({"weight": torch.zeros(100_000), "bias": torch.ones(10)}, base / "model.pt")
    mount.wait_sealed()
    for base in (mount.dir, plain):
        with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
            loaded = torch.load(base / "model.pt", **MAPPED)
        loaded["weight"][5:50_000] = 4
        del loaded
    assert tree_hashes(mount.dir) == tree_hashes(plain)
    mount.remount()
    assert tree_hashes(mount.dir) == tree_hashes(plain)
    assert torch.load(mount.dir / "model.pt")["weight"].sum() == 4 * (50_000 - 5)


def test_programs(mount, plain):
    """torch.jit.save and torch.export.save: loaded from the mount they compute the same."""
    model = trained()[0]
    values = torch.randn(4, 96)
    answer = model(values)
    scripted, traced = torch.jit.script(model), torch.jit.trace(model, values)
    exported = torch.export.export(model, (values,))
    for base in (mount.dir, plain):
        torch.jit.save(scripted, base / "scripted.pt", _extra_files={"note.txt": "kept"})
        traced.save(base / "traced.pt")
        torch.export.save(exported, base / "exported.pt2", extra_files={"note.txt": "kept"})
    expected = tree_hashes(plain)

    def check():
        assert tree_hashes(mount.dir) == expected
        for file, load in (("scripted.pt", torch.jit.load), ("exported.pt2", torch.export.load)):
            note = {"note.txt": ""}
            loaded = load(mount.dir / file, **{"_extra_files" if load is torch.jit.load else "extra_files": note})
            assert note["note.txt"] in ("kept", b"kept")
            loaded = loaded if load is torch.jit.load else loaded.module()
            assert torch.equal(loaded(values), answer)
        with open(mount.dir / "traced.pt", "rb") as f:
            assert torch.equal(torch.jit.load(f)(values), answer)

    in_each_state(mount, check)


def test_loaded_by_threads(mount):
    """16 threads load one file at once, by read and by mapping, from a mount that nothing was read from."""
    state = {f"layer.{number}": torch.randn(50_000) for number in range(6)}
    torch.save(state, mount.dir / "model.pt")
    mount.remount()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        loads = [pool.submit(torch.load, mount.dir / "model.pt", mmap=number % 2 == 0) for number in range(16)]
        assert all(same(load.result(SECONDS), state) for load in loads)


def save_until_killed(path, pipe):
    """Save over and over until killed."""
    torch.set_num_threads(1)
    weight = torch.arange(2_000_000.)
    pipe.send("begins")
    while True:
        torch.save({"weight": weight}, path)


@pytest.mark.long
@pytest.mark.parametrize("milliseconds", range(0, 40, 4))
def test_killed_while_saving(mount, plain, milliseconds):
    """SIGKILL in a save: the other file is whole; the torn one is a prefix, is refused, and is written over."""
    state = {"weight": torch.arange(2_000_000.)}
    torch.save(state, plain / "model.pt")
    torch.save({"weight": torch.ones(1000)}, mount.dir / "kept.pt")
    path, whole = mount.dir / "model.pt", read_file(plain / "model.pt")
    pipe, far_end = training.processes.Pipe()
    saver = training.processes.Process(target=save_until_killed, args=(path, far_end), daemon=True)
    saver.start()
    assert pipe.poll(SECONDS)
    saver.join(milliseconds / 1000)
    saver.kill()
    saver.join(SECONDS)
    content = read_file(path) if path.exists() else None
    assert content is None or whole.startswith(content)
    mount.wait_sealed()
    mount.remount()
    assert (read_file(path) if path.exists() else None) == content
    if content == whole:
        assert same(torch.load(path), state)
    else:
        with pytest.raises((RuntimeError, EOFError, FileNotFoundError)):
            torch.load(path)
    torch.save(state, path)
    assert read_file(path) == whole
    check_state(path, state)
    check_state(mount.dir / "kept.pt", {"weight": torch.ones(1000)})
