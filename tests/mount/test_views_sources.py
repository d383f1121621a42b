"""What a view is made of: whole and sharded models, indexes right and wrong, broken shards, caches of the hub."""

import errno
import json
import os
import shutil

import pytest

from support import shards
from support.files import errno_of, random_bytes, read_file, write_file

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def data(name):
    return random_bytes(sum(name.encode()), 10 + len(name))


def shard(*names):
    return shards.shard({name: data(name) for name in names})


def index(_metadata={"total_size": 1}, **weight_map):
    return json.dumps({"metadata": _metadata, "weight_map": weight_map}).encode()


@pytest.fixture
def model(mount):
    path = mount.dir / "model"
    path.mkdir()
    return path


def save(directory, **files):
    """Files by name; in a name "__" stands for "." and "_" for "-"."""
    for name, content in files.items():
        write_file(directory / name.replace("__", ".").replace("_", "-"), content)


def error_of(directory, variant=""):
    """What .tensors says of what was left out, or None."""
    try:
        return os.getxattr(directory / f".tensors{variant}", "user.weightfs.error").decode()
    except OSError as error:
        assert error.errno == errno.ENODATA
        return None


def assert_shows(directory, *names, error=None, variant=""):
    """The model has these tensors, with their bytes, in .tensors and, if it is whole, in cuts; or it says `error`."""
    shown, cut = directory / f".tensors{variant}", directory / f".shards{variant}"
    assert sorted(os.listdir(shown)) == sorted(f"{name}.npy" for name in names)
    for name in names:
        assert read_file(shown / f"{name}.npy")[128:] == data(name)
    said = error_of(directory, variant)
    assert said is error is None or error in said
    if error is not None:
        assert errno_of(os.listdir, cut / "single") in ([errno.EBUSY] if names else [errno.EBUSY, errno.ENOENT])
    elif names:
        content = b"".join(read_file(path) for path in (cut / "single").glob("*.safetensors"))
        assert all(content.count(data(name)) >= 1 for name in names)
        index, = [path for path in (cut / "1").iterdir() if ".index." in path.name] or [None]
        assert len(names) == (len(set(json.loads(read_file(index))["weight_map"].values())) if index else 1)
    else:
        assert errno_of(os.stat, cut / "single") == errno.ENOENT
        assert os.listdir(cut) == []


# ---- without an index ----


def test_shards_without_index(model):
    """All shards of the base count, from the first to the last; the view has an index of its own."""
    write_file(model / SECOND, shard("a", "c"))
    write_file(model / FIRST, shard("d", "b"))
    assert_shows(model, "a", "b", "c", "d")
    assert json.loads(read_file(model / ".shards/30" / INDEX)) == {
        "metadata": {"total_parameters": 44, "total_size": 44},
        "weight_map": {"d": FIRST, "b": FIRST, "a": SECOND, "c": SECOND}}
    for tensor, name in (("b", FIRST), ("c", SECOND)):
        assert os.getxattr(model / f".tensors/{tensor}.npy", "user.weightfs.shard") == name.encode()


def test_tensor_in_two_shards(model):
    """It counts once: as the index has it, else as the first shard has it."""
    write_file(model / FIRST, shards.shard({"a": b"first", "b": b"1"}))
    write_file(model / SECOND, shards.shard({"a": b"second", "c": b"2"}))
    assert sorted(os.listdir(model / ".tensors")) == ["a.npy", "b.npy", "c.npy"]
    assert read_file(model / ".tensors/a.npy")[128:] == b"first"
    write_file(model / INDEX, index(a=SECOND, b=FIRST, c=SECOND))
    assert read_file(model / ".tensors/a.npy")[128:] == b"second"
    assert read_file(model / ".shards/single/model.safetensors").endswith(b"second12")


BASES = [
    (["model", "adapter_model", "other"], "model"),
    (["adapter_model", "diffusion_pytorch_model"], "diffusion_pytorch_model"),
    (["adapter_model", "zzz"], "adapter_model"),
    (["some_name"], "some_name"),
    (["optimizer", "some_name"], None),
]


def test_base(mount):
    """Of several names the usual one counts, else the only one; its files keep it, the others stay beside them."""
    for bases, chosen in BASES:
        model = mount.dir / "-".join(bases)
        model.mkdir()
        for base in bases:
            write_file(model / f"{base}.safetensors", shard(f"of {base}"))
        if not chosen:
            assert_shows(model, error="several names")
            continue
        assert_shows(model, f"of {chosen}")
        assert sorted(os.listdir(model / ".shards/single")) == sorted(f"{base}.safetensors" for base in bases)


def test_variants(model):
    """Each variant is a model of its own, with index or without."""
    save(model, model__safetensors=shard("plain"), model__fp16_00001_of_00002__safetensors=shard("a"),
         model__fp16_00002_of_00002__safetensors=shard("b"), model__int8__safetensors=shard("small"))
    assert_shows(model, "plain")
    assert_shows(model, "a", "b", variant="@fp16")
    assert_shows(model, "small", variant="@int8")
    write_file(model / "model.safetensors.index.fp16.json", index(b="model.fp16-00002-of-00002.safetensors"))
    assert_shows(model, "b", variant="@fp16")
    assert sorted(os.listdir(model / ".shards@int8/1")) == sorted(os.listdir(model))


@pytest.mark.parametrize("base", ["sd_xl_base_1.0", "Llama-3.1-8B", "a.b.c"])
def test_dots_in_a_name(model, base):
    """The only name that there is is the model's, dots included; written, cut and indexed under it."""
    write_file(model / f"{base}.safetensors", shard("a", "b"))
    assert_shows(model, "a", "b")
    assert os.listdir(model / ".shards/single") == [f"{base}.safetensors"]
    assert sorted(os.listdir(model / ".shards/1")) == [
        f"{base}-00001-of-00002.safetensors", f"{base}-00002-of-00002.safetensors", f"{base}.safetensors.index.json"]
    write_file(model / ".tensors/c.npy", read_file(model / ".tensors/a.npy"))
    assert os.listdir(model) == [f"{base}.safetensors"]
    assert sorted(os.listdir(model / ".tensors")) == ["a.npy", "b.npy", "c.npy"]
    os.setxattr(model, "user.weightfs.max_shard_size", b"1")
    assert len(os.listdir(model)) == 4 and f"{base}-00003-of-00003.safetensors" in os.listdir(model)
    assert sorted(os.listdir(model / ".tensors")) == ["a.npy", "b.npy", "c.npy"]


def test_variant_of_an_unusual_name(model):
    """It is one where the name without it is there, too."""
    save(model, custom__safetensors=shard("plain"), custom__fp16__safetensors=shard("small"))
    assert_shows(model, "plain")
    assert_shows(model, "small", variant="@fp16")


# ---- with an index ----


def test_index(model):
    """Shards that the index does not name are not the model's; what else it says is kept."""
    save(model, model_00001_of_00002__safetensors=shard("a"), model_00002_of_00002__safetensors=shard("b"),
         model_00001_of_00003__safetensors=shard("old"))
    write_file(model / INDEX, index({"total_size": 7, "total_parameters": 5, "note": ["é", 1.0]}, a=FIRST, b=SECOND))
    assert_shows(model, "a", "b")
    assert json.loads(read_file(model / ".shards/1" / INDEX))["metadata"] == {
        "total_size": 22, "total_parameters": 5, "note": ["é", 1.0]}
    # What is left of an older save is in no cut.
    assert sorted(os.listdir(model / ".shards/1")) == [FIRST, SECOND, INDEX]


def test_unusual_names(model):
    """An index may name files of any name; they, not their copies, are left out of a cut."""
    save(model, part__a=shard("a", "b"), part__b=shard("c"), other__bin=b"other")
    write_file(model / INDEX, index(a="part.a", b="part.a", c="part.b"))
    assert_shows(model, "a", "b", "c")
    assert sorted(os.listdir(model / ".shards/single")) == ["model.safetensors", "other.bin"]
    write_file(model / "part.b", shard("d"))
    assert_shows(model, "a", "b", "d")
    os.unlink(model / "part.a")
    assert sorted(os.listdir(model / ".tensors")) == ["d.npy"]


@pytest.mark.parametrize("first, second", [("first.safetensors", "second.safetensors"),
                                           ("pytorch_model-00001-of-00002.safetensors",
                                            "pytorch_model-00002-of-00002.safetensors"),
                                           ("model.part1.safetensors", "model.part2.safetensors")])
def test_shards_of_other_bases(model, first, second):
    """An index may name files that would be another model's without it."""
    write_file(model / first, shard("a"))
    write_file(model / second, shard("b"))
    write_file(model / INDEX, index(a=first, b=second))
    assert_shows(model, "a", "b")


def test_old_names_of_diffusers(model):
    """model-00001-of-00002.fp16.safetensors, by the variant's index."""
    names = [f"diffusion_pytorch_model-0000{number}-of-00002.fp16.safetensors" for number in (1, 2)]
    write_file(model / names[0], shard("a"))
    write_file(model / names[1], shard("b"))
    write_file(model / "diffusion_pytorch_model.safetensors.index.fp16.json", index(a=names[0], b=names[1]))
    assert_shows(model, "a", "b", variant="@fp16")


def test_stale_index(model):
    """transformers leaves the index of the shards that it removed beside model.safetensors: it says nothing."""
    write_file(model / "model.safetensors", shard("new"))
    write_file(model / INDEX, index(a=FIRST, b=SECOND))
    assert_shows(model, "new")
    assert os.listdir(model / ".shards/single") == ["model.safetensors"]


def test_missing_shard(model):
    """A shard that the index names and that is not there is told of, like one that is broken."""
    write_file(model / FIRST, shard("a"))
    write_file(model / INDEX, index(a=FIRST, b=SECOND))
    assert_shows(model, "a", error="")


def test_missing_shard_of_an_unusual_name(model):
    """What is there can be read while an index names a file that is not there, and that is no usual name."""
    write_file(model / FIRST, shard("a"))
    write_file(model / INDEX, index(a=FIRST, b="extra.bin"))
    assert os.listdir(model / ".tensors") == ["a.npy"]
    assert read_file(model / ".tensors/a.npy")[128:] == data("a")


def test_unusual_name_is_completed(model):
    """A shard of an unusual name that was not complete is there when it is."""
    write_file(model / "part.a", shard("a"))
    write_file(model / "part.b", shard("b")[:-3])
    write_file(model / INDEX, index(a="part.a", b="part.b"))
    assert os.listdir(model / ".tensors") == ["a.npy"] and "part.b" in error_of(model)
    write_file(model / "part.b", shard("b"))
    assert_shows(model, "a", "b")


@pytest.mark.parametrize("target", ["loop.bin", "config.json/x"])
def test_index_names_a_bad_link(model, target):
    """It is one that is not there."""
    write_file(model / "config.json", b"{}")
    (model / "loop.bin").symlink_to(target)
    write_file(model / FIRST, shard("a"))
    write_file(model / INDEX, index(a=FIRST, b="loop.bin"))
    assert os.listdir(model / ".tensors") == ["a.npy"]


BAD_INDEXES = {
    "empty": b"", "cut": b'{"metadata": {}, "weight_map": {"a":', "list": b"[]", "no-map": b"{}",
    "map-list": b'{"weight_map": []}', "outside": index(a="../x.safetensors"), "absolute": index(a="/etc/passwd"),
    "empty-name": index(a=""), "dots": index(a=".."),
    "number": b'{"weight_map": {"a": 1}}', "deep": b"[" * 100_000, "nan": b'{"metadata": {"a": NaN}, "weight_map": {}}',
    "not-utf8": b'{"weight_map": {"\xff": "a"}}',
}


def test_bad_indexes(model):
    """An index that is none is left out, and the attribute says so; right again when it is."""
    write_file(model / FIRST, shard("a"))
    write_file(model / SECOND, shard("b"))
    for kind, content in BAD_INDEXES.items():
        write_file(model / INDEX, content)
        assert_shows(model, "a", "b", error="index")
        write_file(model / INDEX, index(a=FIRST))
        assert_shows(model, "a")


# ---- shards that are not right ----


def test_broken_shards(mount):
    """One is left out, and the attribute names it; the others are there; right again when it is."""
    for case in shards.WRONG + shards.INCOMPLETE + shards.OPAQUE:
        model = mount.dir / case.name
        model.mkdir()
        write_file(model / FIRST, shard("z"))
        errno_of(write_file, model / SECOND, case.content)
        assert_shows(model, "z", error=SECOND)
        write_file(model / SECOND, shard("y"))
        assert_shows(model, "z", "y")
        errno_of(write_file, model / "model.fp16.safetensors", case.content)
        assert_shows(model, variant="@fp16", error="model.fp16.safetensors")
        assert_shows(model, "y", "z")


def test_valid_shards(mount):
    """All that safetensors loads has views, and they are what safetensors loads."""
    safetensors = pytest.importorskip("safetensors")

    def load(content):
        return {name: bytes(of["data"]) for name, of in safetensors.deserialize(content)}

    for case in shards.VALID + shards.WARNED:
        model = mount.dir / case.name
        model.mkdir()
        write_file(model / "model.safetensors", case.content)
        expected, shown = load(case.content), model / ".tensors"
        assert sorted(os.listdir(shown)) == sorted(f"{name}.npy" for name in expected)
        for name, content in expected.items():
            assert read_file(shown / f"{name}.npy")[128:] == content
            assert load(read_file(shown / f"{name}.safetensors")) == {name: content}
        if expected:
            assert load(read_file(model / ".shards/single/model.safetensors")) == expected


def test_no_regular_files(model):
    """A directory, a fifo or a bad link under a shard's name is none."""
    (model / "model.safetensors").mkdir()
    os.mkfifo(model / FIRST)
    (model / SECOND).symlink_to(SECOND)
    assert os.listdir(model / ".tensors") == os.listdir(model / ".shards") == []
    write_file(model / "model-00003-of-00003.safetensors", shard("a"))
    (model / INDEX).mkdir()
    assert_shows(model, "a", error="model")


# ---- links ----


def test_hub_cache(mount):
    """snapshots/REVISION is a directory of links into blobs: two revisions that share a shard, each with its views."""
    repository = mount.dir / "models--owner--name"
    blobs = {"1" * 64: shard("a"), "2" * 64: shard("b"), "3" * 64: shard("c"), "4" * 40: b"{}",
             "5" * 40: index(a=FIRST, b=SECOND), "6" * 40: index(a=FIRST, c=SECOND)}
    revisions = {"main": {FIRST: "1" * 64, SECOND: "2" * 64, "config.json": "4" * 40, INDEX: "5" * 40},
                 "next": {FIRST: "1" * 64, SECOND: "3" * 64, "config.json": "4" * 40, INDEX: "6" * 40}}
    (repository / "blobs").mkdir(parents=True)
    for name, content in blobs.items():
        write_file(repository / "blobs" / name, content)
    for revision, files in revisions.items():
        (repository / "snapshots" / revision / "onnx").mkdir(parents=True)
        for name, blob in files.items():
            (repository / "snapshots" / revision / name).symlink_to(f"../../blobs/{blob}")
        (repository / "snapshots" / revision / "onnx/config.json").symlink_to(f"../../../blobs/{'4' * 40}")
    for revision, names in (("main", "ab"), ("next", "ac")):
        snapshot = repository / "snapshots" / revision
        assert_shows(snapshot, *names)
        assert sorted(os.listdir(snapshot / ".shards/single")) == ["config.json", "model.safetensors", "onnx"]
        assert read_file(snapshot / ".shards/single/onnx/config.json") == b"{}"
        assert not (snapshot / ".shards/single/config.json").is_symlink()
    # The revision moves on; another blob is broken.
    snapshot = repository / "snapshots/main"
    (snapshot / "new").symlink_to(f"../../blobs/{'3' * 64}")
    os.rename(snapshot / "new", snapshot / SECOND)
    assert sorted(os.listdir(snapshot / ".tensors")) == ["a.npy", "c.npy"]
    os.unlink(repository / "blobs" / ("1" * 64))
    assert os.listdir(repository / "snapshots/next/.tensors") == ["c.npy"]
    shutil.rmtree(repository)


def test_links_of_all_kinds(mount, model):
    """Links to links, to another directory, through directories that are links; hard links."""
    (mount.dir / "far/away").mkdir(parents=True)
    write_file(mount.dir / "far/away/weights", shard("a", "b"))
    (mount.dir / "near").symlink_to("far")
    (mount.dir / "far/again").symlink_to("./away/../away/weights")
    (model / "model.safetensors").symlink_to("..//near/./again")
    assert_shows(model, "a", "b")
    os.unlink(model / "model.safetensors")
    os.link(mount.dir / "far/away/weights", model / "model.safetensors")
    assert_shows(model, "a", "b")


def test_absolute_link(mount, model):
    """A link by the path of the mount leads to what is there; or .tensors says that it is not followed."""
    (mount.dir / "far").mkdir()
    write_file(mount.dir / "far/weights", shard("a"))
    (model / "model.safetensors").symlink_to(mount.dir / "far/weights")
    assert os.listdir(model / ".tensors") == ["a.npy"] or error_of(model)
