"""`weightfs tensors`, `cat`, `put` and `shard`: a model of the mount by the files of its views alone."""

import errno
import io
import json
import os
import pty
import re
import shutil
import subprocess

import pytest

from support import shards
from support.files import MIB, errno_of, random_bytes, read_file, write_file

numpy = pytest.importorskip("numpy")

COMMANDS = {"tensors": ["--json", "--variant"], "cat": ["--npy", "--safetensors", "--variant"], "put": ["--variant"],
            "shard": ["--json"]}
DIGEST = re.compile(r"xxh3:[0-9a-f]{32}")
LONGEST = {"npy": 251, "safetensors": 243}  # bytes of a tensor's name whose file has a name of 255


def call(mount, *args, data=b"", **kwargs):
    """A command whose output is bytes; `data` is its standard input."""
    return subprocess.run([mount.weightfs, *map(str, args)], input=data, timeout=240,
                          **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | kwargs))


def cat(mount, *args):
    done = call(mount, "cat", *args)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def assert_error(done, *words, status=1):
    """Its exit status, nothing on stdout, and what and where on stderr, on lines of their own."""
    output, error = (text if isinstance(text, str) else text.decode() for text in (done.stdout or "", done.stderr))
    assert (done.returncode, output) == (status, ""), (output, error)
    assert error.startswith("weightfs: ")
    for word in words:
        assert str(word) in error, (word, error)


def entry_of(tensor):
    """What `tensors` says of it, but for its place."""
    return {name: tensor[name] for name in ("name", "dtype", "shape", "bytes")}


def npy(array):
    file = io.BytesIO()
    numpy.save(file, array)
    return file.getvalue()


def one_tensor(name, array):
    from safetensors.numpy import save
    return save({name: array})


@pytest.fixture
def model(mount):
    """A directory of two shards and an index, with what they hold as `arrays`: {file: {name: array}}."""
    from safetensors.numpy import save_file
    mount.model = mount.dir / "a model"
    mount.model.mkdir()
    mount.arrays = {
        "model-00001-of-00002.safetensors": {
            "embed.weight": numpy.arange(12, dtype="float32").reshape(3, 4), "scalar": numpy.array(7, "int64"),
            "empty": numpy.zeros((0, 5), "float16")},
        "model-00002-of-00002.safetensors": {
            "a/b%2F": numpy.array([[1, 2], [3, 4]], "uint8"), "flags": numpy.array([True, False]),
            "large": numpy.frombuffer(random_bytes(1, 3 * MIB), "int8").reshape(3, MIB)}}
    for name, arrays in mount.arrays.items():
        save_file(arrays, mount.model / name, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, arrays in mount.arrays.items() for name in arrays}}
    write_file(mount.model / "model.safetensors.index.json", json.dumps(index).encode())
    mount.wait_sealed()
    return mount


@pytest.fixture
def plain_views(unmounted):
    """Views are off, and .tensors is a directory like any other: what `put` writes there can be looked at."""
    unmounted.mount("views=off")
    unmounted.model = unmounted.dir / "model"
    (unmounted.model / ".tensors").mkdir(parents=True)
    return unmounted


# ---- usage ----

@pytest.mark.parametrize("name", COMMANDS)
def test_help(weightfs, name):
    done = subprocess.run([weightfs, name, "--help"], capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: weightfs {name} ")
    assert all(option in done.stdout for option in COMMANDS[name])
    assert max(map(len, done.stdout.expandtabs().splitlines())) <= 82
    listed = subprocess.run([weightfs, "--help"], capture_output=True, text=True, timeout=240).stdout
    assert re.search(rf"^  {name} ", listed, re.M)


@pytest.mark.parametrize("args", ["tensors", "tensors a b", "tensors --variant", "cat", "cat model", "cat a b c",
                                  "cat --npy --safetensors a b", "cat --json a b", "put a b", "put a b c d", "shard",
                                  "shard a 1GB b", "shard a many", "shard a 0", "shard a -- -5", "shard a 5G"])
def test_wrong_usage(weightfs, tmp_path, args):
    done = subprocess.run([weightfs, *args.split()], capture_output=True, text=True, cwd=tmp_path, timeout=240)
    assert done.returncode == 2 and done.stdout == ""
    assert f"weightfs help {args.split()[0]}" in done.stderr


# ---- where the model is ----

EACH = {"tensors": [], "cat": ["x"], "put": ["x", os.devnull], "shard": []}


@pytest.mark.parametrize("command", EACH)
def test_not_in_a_mount(model, tmp_path, command):
    """No such directory, none in a mount, the store itself, a file, a view: what it is, on one line, and a hint."""
    def refused(path, *words):
        assert_error(call(model, command, path, *EACH[command]), *words)

    refused(tmp_path / "missing", "missing", "No such file")
    refused(tmp_path, tmp_path, "no mount of weightfs", "weightfs mount")
    refused(model.store, model.store, "no mount of weightfs")
    refused(model.model / "model-00001-of-00002.safetensors", "no directory")
    refused(model.model / ".tensors", "no view", "views=off")
    model.umount()
    refused(model.model, "No such file")


@pytest.mark.parametrize("command", EACH)
def test_views_are_off(model, command):
    model.umount()
    model.mount("views=off")
    assert_error(call(model, command, model.model, *EACH[command]), model.model, "views=off")


@pytest.mark.parametrize("command", ["tensors", "cat", "put"])
def test_no_such_variant(model, command):
    for variant in ("", "a/b"):
        assert_error(call(model, command, "--variant", variant, model.model, *EACH[command]), "no variant", status=2)
    assert_error(call(model, command, "--variant", "v" * 300, model.model, *EACH[command]), "File name too long")


def test_by_a_symlink(model, tmp_path):
    """A link from outside leads to the model as well, and a relative path."""
    os.symlink(model.model, tmp_path / "link")
    expected = model.json("tensors", model.model)
    assert model.json("tensors", tmp_path / "link") == expected
    done = call(model, "tensors", "--json", "..", cwd=model.model / ".tensors")
    assert json.loads(done.stdout) == expected


# ---- tensors ----

def test_tensors(model):
    """Shard by shard in the order of their bytes: dtype, shape and bytes as Python's safetensors has them."""
    from safetensors import safe_open
    listing = model.json("tensors", model.model)
    expected = []
    for shard, arrays in model.arrays.items():
        in_order = {t["name"]: t["digest"] for t in model.json("ls", model.model / shard)["tensors"]}
        with safe_open(model.model / shard, framework="np") as f:
            for name in in_order:
                tensor = f.get_slice(name)
                expected.append({"name": name, "dtype": tensor.get_dtype(), "shape": tensor.get_shape(),
                                 "bytes": arrays[name].nbytes, "shard": shard,
                                 "digest": in_order[name] if arrays[name].nbytes else None})
    assert listing == expected
    assert all(DIGEST.fullmatch(t["digest"]) for t in listing if t["bytes"])


def test_tensors_as_text(model):
    done = model.run("tensors", model.model)
    heads, *rows = done.stdout.splitlines()
    assert heads.split() == ["TENSOR", "DTYPE", "SHAPE", "BYTES", "SHARD", "DIGEST"]
    assert len(rows) == 6 and done.stderr == ""
    row = next(row for row in rows if row.startswith("embed.weight "))
    assert row.split()[1:5] == ["F32", "[3,4]", "48", "model-00001-of-00002.safetensors"]
    assert any(re.search(r"^empty +F16 +\[0,5\] +0 +\S+ +-$", row) for row in rows)


DTYPES = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
          "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32,
          "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64}


def test_every_dtype(mount):
    """All 22, with bytes of their own: as they are listed, and as they are printed."""
    header, data = {}, b""
    for number, (dtype, bits) in enumerate(DTYPES.items()):
        shape = [number % 3 + 1, 8]
        content = random_bytes(number, shape[0] * bits)
        header[f"t.{dtype}"] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    write_file(mount.dir / "model.safetensors", shards.raw(json.dumps(header), data))
    expected = [{"name": name, "dtype": entry["dtype"], "shape": entry["shape"],
                 "bytes": entry["data_offsets"][1] - entry["data_offsets"][0]} for name, entry in header.items()]
    assert [entry_of(tensor) for tensor in mount.json("tensors", mount.dir)] == expected
    for name, tensor in header.items():
        begin, end = tensor["data_offsets"]
        assert cat(mount, mount.dir, name) == data[begin:end]
        alone = cat(mount, "--safetensors", mount.dir, name)
        entry = tensor | {"data_offsets": [0, end - begin]}
        assert json.loads(alone[8:len(alone) - (end - begin)]) == {name: entry}
        assert alone.endswith(data[begin:end])


ODD_NAMES = ["", ".", "..", "-", "--json", "a b", "a\nb\x1b[31m", "%", "%%2F", "/", "../x", "ü/名", "x.npy",
             "x.safetensors", "\\", "n" * 251]


def test_odd_names(mount):
    """Names that are no file's name, move a cursor or look like an option: listed as they are, and found."""
    tensors = {name: random_bytes(number, 100 + number) for number, name in enumerate(ODD_NAMES)}
    write_file(mount.dir / "model.safetensors", shards.shard(tensors))
    assert [t["name"] for t in mount.json("tensors", mount.dir)] == ODD_NAMES
    assert "\x1b" not in mount.run("tensors", mount.dir).stdout
    assert len(mount.run("tensors", mount.dir).stdout.splitlines()) == 1 + len(ODD_NAMES)
    for name, content in tensors.items():
        assert cat(mount, "--", mount.dir, name) == content
        assert numpy.load(io.BytesIO(cat(mount, "--npy", "--", mount.dir, name))).tobytes() == content


def test_names_that_are_too_long(mount):
    """They are listed, last; `cat` says that they are too long, and `put` before it writes."""
    long, longer = "%" * 84, "l" * 252
    tensors = {long: b"1234", "short": b"56", longer: b"789"}
    write_file(mount.dir / "model.safetensors", shards.shard(tensors))
    write_file(mount.dir / "file.npy", npy(numpy.ones(3)))
    listing = mount.json("tensors", mount.dir)
    assert [(t["name"], t["bytes"], t["shape"], t["shard"]) for t in listing] == \
        [(name, len(tensors[name]), [len(tensors[name])], "model.safetensors") for name in ("short", long, longer)]
    assert [t["digest"] is None for t in listing] == [False, True, True]
    for name in (long, longer):
        assert_error(call(mount, "cat", mount.dir, name), name[:40], "too long", "shard")
        assert_error(call(mount, "put", mount.dir, name, mount.dir / "file.npy"), name[:40], "too long", "shorter")


def test_longest_names(mount):
    """The longest name that one kind of file can have; raw bytes are to be had by either kind."""
    name = "n" * (LONGEST["safetensors"] + 1)
    write_file(mount.dir / "model.safetensors", shards.shard({name: b"123", name[1:]: b"45"}))
    assert cat(mount, mount.dir, name) == b"123"
    assert_error(call(mount, "cat", "--safetensors", mount.dir, name), "too long")
    assert cat(mount, "--safetensors", mount.dir, name[1:]).endswith(b"45")


def test_variants(mount):
    write_file(mount.dir / "model.safetensors", shards.shard({"x": b"plain"}))
    write_file(mount.dir / "model.fp16.safetensors", shards.shard({"x": b"variant", "y": b""}))
    assert [t["bytes"] for t in mount.json("tensors", mount.dir)] == [5]
    listing = mount.json("tensors", mount.dir, "--variant", "fp16")
    assert [(t["name"], t["shard"]) for t in listing] == [(name, "model.fp16.safetensors") for name in "xy"]
    assert cat(mount, mount.dir, "x") == b"plain"
    assert cat(mount, mount.dir, "x", "--variant=fp16") == b"variant"


def test_no_tensors(mount):
    """No shards, or none of this variant: an empty list, and a word about it beside it."""
    for args in ([], ["--variant", "fp16"]):
        done = mount.run("tensors", mount.dir, *args, "--json")
        assert json.loads(done.stdout) == []
        assert "no shard here has tensors" in done.stderr
        assert mount.run("tensors", mount.dir, *args).stdout == ""
    done = mount.run("shard", mount.dir, "5GB", "--json")
    assert json.loads(done.stdout)["shards"] == [] and "no shard here has tensors" in done.stderr


def test_shards_that_are_left_out(model):
    """What the list lacks is said on standard error; the list is still whole otherwise."""
    path = model.model / "model-00002-of-00002.safetensors"
    with open(path, "r+b") as f:
        f.truncate(5000)
    done = model.run("tensors", model.model, "--json")
    assert {t["shard"] for t in json.loads(done.stdout)} == {"model-00001-of-00002.safetensors"}
    assert path.name in done.stderr


def test_saved_again(model):
    """The listing is that of the model as it is now."""
    from safetensors.numpy import save_file
    save_file({"new": numpy.ones(5, "float64")}, model.model / "model-00001-of-00002.safetensors")
    names = {t["name"] for t in model.json("tensors", model.model)}
    assert "new" in names and "embed.weight" not in names
    assert cat(model, model.model, "new") == numpy.ones(5).tobytes()


def test_many_tensors(mount):
    tensors = {f"model.layers.{n}.weight": n.to_bytes(4, "little") for n in range(3000)}
    write_file(mount.dir / "model.safetensors", shards.shard(tensors))
    assert [(t["name"], t["bytes"]) for t in mount.json("tensors", mount.dir)] == [(name, 4) for name in tensors]


# ---- cat ----

def test_cat(model):
    """Raw, as numpy.save writes it, and as a file that safetensors loads."""
    from safetensors.numpy import load
    for arrays in model.arrays.values():
        for name, array in arrays.items():
            assert cat(model, model.model, name) == array.tobytes()
            assert cat(model, model.model, name, "--npy") == npy(array)
            loaded = load(cat(model, "--safetensors", model.model, name))
            assert list(loaded) == [name] and loaded[name].shape == array.shape
            assert loaded[name].tobytes() == array.tobytes()


def test_cat_errors(model):
    for options in ([], ["--npy"], ["--safetensors"]):
        assert_error(call(model, "cat", *options, model.model, "missing"), "missing: no such tensor",
                     model.model, "weightfs tensors")
    write_file(model.dir / "model.safetensors", shards.raw(json.dumps({"b": shards.entry(0, 4, [2], "BF16")}), b"1234"))
    assert_error(call(model, "cat", "--npy", model.dir, "b"), "b: NumPy does not have its dtype", "--safetensors")
    assert cat(model, model.dir, "b") == b"1234"


def test_cat_to_a_terminal(model):
    """Bytes do not go to a terminal, whatever the form."""
    ours, theirs = pty.openpty()
    for options in ([], ["--npy"], ["--safetensors"]):
        done = call(model, "cat", *options, model.model, "scalar", stdout=theirs)
        assert_error(done, "scalar", "terminal", "> FILE")
    os.close(theirs)
    assert errno_of(os.read, ours, 1) == errno.EIO, "something was written"
    os.close(ours)


def test_cat_to_what_fails(model):
    """A full disk is an error; a reader that goes away ends it by SIGPIPE, as every filter."""
    with open("/dev/full", "wb") as full:
        assert_error(call(model, "cat", model.model, "scalar", stdout=full), "standard output", "No space left")
    with subprocess.Popen([model.weightfs, "cat", model.model, "large"], stdout=subprocess.PIPE) as process:
        process.stdout.read(1)
        process.stdout.close()
        assert process.wait(10) in (-13, 1)


def test_cat_into_the_mount(model):
    """A tensor alone becomes a model of its own; what the gate refuses at close is an error of `cat`."""
    with open(model.dir / "alone.safetensors", "wb") as f:
        assert call(model, "cat", "--safetensors", model.model, "large", stdout=f).returncode == 0
    assert model.json("ls", model.dir / "alone.safetensors")["verdict"] == "valid"
    fd = os.open(model.dir / "raw.safetensors", os.O_WRONLY | os.O_CREAT)
    assert_error(call(model, "cat", model.model, "large", stdout=fd), "standard output", "Bad message")
    assert errno_of(os.close, fd) == errno.EBADMSG


@pytest.mark.root_only
def test_another_user(unmounted, other_user):
    """Who may not read a shard cannot list or print its tensors; who may not write there puts and cuts nothing."""
    base = unmounted.dir.parent
    for path in [base, *base.parents]:
        if not path.stat().st_mode & 0o001:
            path.chmod(path.stat().st_mode | 0o011)
    binary = shutil.copy(unmounted.weightfs, base / "weightfs")
    unmounted.mount("allow_other")
    os.chmod(unmounted.dir, 0o755)
    path = unmounted.dir / "model.safetensors"
    write_file(path, shards.shard({"a": b"1234"}))
    write_file(base / "x.npy", npy(numpy.ones(3)), 0o644)

    def refused(*args, words=("Permission denied",)):
        done = subprocess.run([binary, *map(str, args)], capture_output=True, timeout=60, user=other_user.pw_uid,
                              group=other_user.pw_gid, extra_groups=[])
        assert_error(done, *words)

    os.chmod(path, 0o600)
    refused("tensors", unmounted.dir)
    refused("cat", unmounted.dir, "a")
    os.chmod(path, 0o644)
    may_write = "may write to the model's directory"
    refused("put", unmounted.dir, "a", base / "x.npy", words=["Permission denied", may_write])
    refused("put", unmounted.dir, "b", base / "x.npy", words=["Permission denied", may_write])
    refused("shard", unmounted.dir, "1MB", words=["not cut", may_write])
    assert [t["name"] for t in unmounted.json("tensors", unmounted.dir)] == ["a"]
    assert unmounted.json("shard", unmounted.dir)["max_shard_size"] is None


# ---- put ----

def files_of(path):
    return {name: read_file(path / name) for name in os.listdir(path)}


def test_put_writes_the_file(plain_views, tmp_path):
    """What it is given, byte for byte; by the kind that its first bytes say, whatever it is called, and from a pipe."""
    array = numpy.arange(300_000, dtype=">i8")
    contents = {"a/b%": ("npy", npy(array)), "plain": ("safetensors", one_tensor("plain", array.astype("<i8"))),
                "": ("npy", npy(numpy.array(1))), "late": ("safetensors", b"\x0a" + bytes(7) + b"{        }")}
    for name, (_, content) in contents.items():
        write_file(tmp_path / "file.wrong", content)
        done = call(plain_views, "put", plain_views.model, name, tmp_path / "file.wrong")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    expected = {f"{name.replace('%', '%25').replace('/', '%2F')}.{kind}": content
                for name, (kind, content) in contents.items()}
    assert files_of(plain_views.model / ".tensors") == expected
    for name, (_, content) in contents.items():
        os.unlink(tmp_path / "file.wrong")
        write_file(tmp_path / "file.wrong", content + b"old and longer")
        assert call(plain_views, "put", plain_views.model, name, "-", data=content).returncode == 0
    assert files_of(plain_views.model / ".tensors") == expected


NEITHER = {"empty": b"", "short": b"\x93NUMP", "text": b"hello, world", "zip": b"PK\3\4" + bytes(100),
           "gguf": b"GGUF\3\0\0\0" + bytes(100), "cut": b"\x08" + bytes(7), "no-json": b"\x08" + bytes(7) + b"abcdefgh",
           "nul": bytes(50)}


@pytest.mark.parametrize("kind", NEITHER)
def test_put_of_neither_kind(plain_views, tmp_path, kind):
    """It is refused before anything is made."""
    write_file(tmp_path / "x.npy", NEITHER[kind])
    done = call(plain_views, "put", plain_views.model, "t", tmp_path / "x.npy")
    assert_error(done, tmp_path / "x.npy", "neither a .npy nor a .safetensors")
    assert_error(call(plain_views, "put", plain_views.model, "t", "-", data=NEITHER[kind]), "standard input")
    assert os.listdir(plain_views.model / ".tensors") == []


def test_put_of_what_cannot_be_read(plain_views, tmp_path):
    assert_error(call(plain_views, "put", plain_views.model, "t", tmp_path / "missing"), "missing", "No such file")
    assert_error(call(plain_views, "put", plain_views.model, "t", tmp_path), tmp_path, "directory")
    assert os.listdir(plain_views.model / ".tensors") == []


def test_put_that_close_refuses(plain_views):
    """EBADMSG of close(2) is told; here by the gate for files, which gives no reason that `put` knows of."""
    done = call(plain_views, "put", plain_views.model, "t", "-", data=shards.raw("{}") + b"left over")
    assert_error(done, "standard input is refused as tensor t", "Bad message", "as it was")


def test_put_on_a_read_only_mount(model, tmp_path):
    write_file(tmp_path / "x.npy", npy(numpy.ones(3)))
    before = model.json("tensors", model.model)
    model.umount()
    model.mount("ro")
    assert_error(call(model, "put", model.model, "t", tmp_path / "x.npy"), "t.npy", "Read-only", "without -o ro")
    assert_error(call(model, "shard", model.model, "1MB"), model.model, "Read-only", "without -o ro")
    assert model.json("tensors", model.model) == before


def loaded(directory):
    """{name: bytes} of all that the shards hold."""
    from safetensors.numpy import load_file
    return {name: array.tobytes()
            for path in directory.glob("*.safetensors") for name, array in load_file(path).items()}


def bytes_of(model):
    return {name: array.tobytes() for arrays in model.arrays.values() for name, array in arrays.items()}


def test_put_adds_and_replaces(model, tmp_path):
    """A new tensor, a replaced one of another shape, one from a pipe: in the listing, the shards and the index."""
    expected = bytes_of(model)
    added = {"new/one": npy(numpy.arange(10, dtype="uint8")),
             "scalar": one_tensor("any name", numpy.ones((2, 2), "float64")),
             "turned": npy(numpy.asfortranarray(numpy.arange(6, dtype=">i4").reshape(2, 3)))}
    expected |= {"new/one": numpy.arange(10, dtype="uint8").tobytes(), "scalar": numpy.ones(4).tobytes(),
                 "turned": numpy.arange(6, dtype="<i4").tobytes()}
    for name, content in added.items():
        write_file(tmp_path / "file", content)
        source = "-" if name == "turned" else tmp_path / "file"
        done = call(model, "put", model.model, name, source, data=content)
        assert (done.returncode, done.stderr) == (0, b"")
    assert loaded(model.model) == expected
    assert {t["name"] for t in model.json("tensors", model.model)} == expected.keys()
    index = json.loads(read_file(model.model / "model.safetensors.index.json"))
    assert index["weight_map"].keys() == expected.keys()
    for name, content in expected.items():
        assert cat(model, model.model, name) == content


def test_put_into_an_empty_directory(mount):
    """The first tensor makes the model, of a variant as well."""
    for name in "ab":
        assert call(mount, "put", mount.dir, name, "-", data=npy(numpy.full(3, ord(name)))).returncode == 0
    done = call(mount, "put", "--variant", "fp16", mount.dir, "c", "-", data=npy(numpy.ones(2, "float16")))
    assert done.returncode == 0
    assert [t["name"] for t in mount.json("tensors", mount.dir)] == ["a", "b"]
    assert sorted(os.listdir(mount.dir)) == ["model.fp16.safetensors", "model.safetensors"]


def test_put_by_cat(model):
    """One model's tensor in another, without a file between: the tensor is stored once."""
    other = model.dir / "other"
    other.mkdir()
    before = model.wait_sealed()["stored_bytes"]
    content = call(model, "cat", "--safetensors", model.model, "large").stdout
    assert call(model, "put", other, "large", "-", data=content).returncode == 0
    listing = {t["name"]: t["digest"] for t in model.json("tensors", model.model)}
    assert [t["digest"] for t in model.json("tensors", other)] == [listing["large"]]
    assert model.wait_sealed()["stored_bytes"] < before + MIB


REFUSED = {"npy-short": npy(numpy.ones(100))[:-1], "npy-long": npy(numpy.ones(100)) + b"x",
           "npy-dtype": npy(numpy.array(["text"])), "data-short": one_tensor("t", numpy.ones(9))[:-1],
           "data-long": one_tensor("t", numpy.ones(9)) + b"x",
           "tensor-count": shards.shard({"a": b"1", "b": b"2"}),
           "header-not-json": b"\x08" + bytes(7) + b"{{{{{{{{"}


def test_put_that_is_refused(model, tmp_path):
    """Its own reason is told, exit status 1, on one line whatever its name; the model is as it was."""
    before = model.json("tensors", model.model)
    for reason, content in REFUSED.items():
        write_file(tmp_path / "file", content)
        for name, shown in {"scalar": "scalar", f"{reason}/a\nb": f"{reason}/a\\nb"}.items():
            done = call(model, "put", model.model, name, tmp_path / "file")
            assert_error(done, f"weightfs: {tmp_path}/file is refused as tensor {shown}: {reason}: ",
                         "\n  the model is as it was\n")
            assert len(done.stderr.splitlines()) == 2
    listing = call(model, "tensors", "--json", model.model)
    assert json.loads(listing.stdout) == before
    assert all(reason in listing.stderr.decode() for reason in REFUSED), "what was refused lately"
    assert loaded(model.model) == bytes_of(model)


def test_put_beside_a_broken_shard(model):
    """A model of which something is left out takes no tensor, and is not cut: both say so."""
    with open(model.model / "model-00002-of-00002.safetensors", "r+b") as f:
        f.truncate(5000)
    model.wait_sealed()
    assert_error(call(model, "put", model.model, "t", "-", data=npy(numpy.ones(3))),
                 "refused as tensor t: shards-left-out: ", "model-00002-of-00002.safetensors", "weightfs status")
    assert_error(call(model, "shard", model.model, "1MB"), "not cut", "busy", "weightfs status")
    done = model.run("shard", model.model, "--json")
    assert [shard["name"] for shard in json.loads(done.stdout)["shards"]] == ["model-00001-of-00002.safetensors"]
    assert "model-00002-of-00002.safetensors" in done.stderr


# ---- shard ----

def assert_shards(mount, listing):
    """What `shard` says of each shard is so."""
    assert listing["bytes"] == sum(shard["bytes"] for shard in listing["shards"])
    for shard in listing["shards"]:
        path = mount.model / shard["name"]
        assert shard["bytes"] == path.stat().st_size
        assert shard["tensors"] == len(mount.json("ls", path)["tensors"])


def test_shards(model):
    listing = model.json("shard", model.model)
    assert [shard["name"] for shard in listing["shards"]] == list(model.arrays)
    assert (listing["model"], listing["max_shard_size"]) == (str(model.model), None)
    assert_shards(model, listing)
    text = model.run("shard", model.model).stdout
    assert text.startswith(f"{model.model}: 2 shards, 3.0 MiB\n")
    assert re.search(r"^model-00002-of-00002.safetensors +3.0 MiB +3$", text, re.M)


def sizes_of(listing):
    return [(shard["name"], shard["tensors"]) for shard in listing["shards"]]


def test_cut_anew(model):
    """Shards by the plan of huggingface_hub, the same tensors, the size kept; and back to one file."""
    from huggingface_hub.serialization import split_state_dict_into_shards_factory
    expected = bytes_of(model)
    order = [tensor["name"] for tensor in model.json("tensors", model.model)]
    for size in ("20", "1MB", "5GB"):
        split = split_state_dict_into_shards_factory(
            {name: expected[name] for name in order}, get_storage_size=len, get_storage_id=lambda data: None,
            max_shard_size=int(size) if size.isdigit() else size, filename_pattern="model{suffix}.safetensors")
        plan = sorted((name, len(tensors)) for name, tensors in split.filename_to_tensors.items())
        listing = model.json("shard", model.model, size)
        assert sorted(sizes_of(listing)) == plan
        assert listing["max_shard_size"] == size
        assert_shards(model, listing)
        assert loaded(model.model) == expected
        assert model.json("shard", model.model) == listing
        assert f"each at most {size}\n" in model.run("shard", model.model).stdout
