"""The C library as other programs get it: installed, found by pkg-config, and used by docs/examples/.

What `make install` has put there is compared with Python's safetensors, NumPy and
huggingface_hub, by the examples. The build under test is installed as it is.
"""

import json
import os
import pathlib
import shutil
import struct
import subprocess

import pytest

from support.shards import raw

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
EXAMPLES = ROOT / "docs" / "examples"
PROGRAMS = ["list_tensors", "write_file", "npy_to_safetensors", "plan_shards"]
PREFIX = "/opt/weightfs"
SIZES = ["1KB", "4KB", "10KB", "12000", "1GB"]

numpy = pytest.importorskip("numpy")


def environment():
    """Without what a make above pytest has set for its own sub-makes."""
    return {name: value for name, value in os.environ.items()
            if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")}


def run(*command, check=True, text=True, **variables):
    done = subprocess.run([os.fspath(part) for part in command], capture_output=True, text=text, timeout=240,
                          stdin=subprocess.DEVNULL, env=environment() | variables)
    if check:
        assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def make(weightfs, target, *variables):
    """A target of the Makefile for the build under test, which is up to date: nothing is compiled."""
    return run("make", "-C", ROOT, "--no-print-directory", "-o", "all", target, f"BUILD={weightfs.parent}", *variables)


def pkg_config(destdir, *args):
    """pkg-config as a packager calls it, for what stands below `destdir`."""
    return run("pkg-config", *args, "weightfs", PKG_CONFIG_SYSROOT_DIR=os.fspath(destdir),
               PKG_CONFIG_PATH=f"{destdir}{PREFIX}/lib/pkgconfig").stdout.split()


def installed(destdir):
    return {os.fspath(path.relative_to(destdir)) for path in destdir.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def destdir(weightfs, tmp_path_factory):
    for program in ("make", "pkg-config", os.environ.get("CC", "cc")):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")
    if not (weightfs.parent / "libweightfs.a").exists():
        pytest.skip(f"{weightfs.parent} has no libweightfs.a beside the command")
    path = tmp_path_factory.mktemp("installed")
    make(weightfs, "install", f"DESTDIR={path}", f"PREFIX={PREFIX}")
    return path


def compile_program(destdir, source, target, *flags):
    """Compile and link as the comment at the top of each example says."""
    sanitize = os.environ.get("SANITIZE")
    extra = [f"-fsanitize={sanitize}"] if sanitize else ["--coverage"] if os.environ.get("COVERAGE") else []
    run(os.environ.get("CC", "cc"), "-Wall", "-Wextra", "-Werror", *flags, *extra, "-o", target, source,
        *pkg_config(destdir, "--cflags", "--libs"))


@pytest.fixture(scope="session")
def programs(destdir, tmp_path_factory):
    """{name: path} of every example, compiled."""
    directory = tmp_path_factory.mktemp("programs")
    assert sorted(path.stem for path in EXAMPLES.glob("*.c")) == sorted(PROGRAMS)
    for name in PROGRAMS:
        compile_program(destdir, EXAMPLES / f"{name}.c", directory / name)
    return {name: directory / name for name in PROGRAMS}


# ---- what is installed ----

def test_files(destdir, weightfs):
    """The command, its page, the archive and the headers; each header that weightfs.h includes, and no other."""
    lines = (ROOT / "lib" / "weightfs.h").read_text().splitlines()
    headers = {line.split('"')[1] for line in lines if line.startswith('#include "')}
    prefix = PREFIX.removeprefix("/")
    assert installed(destdir) == {
        f"{prefix}/bin/weightfs", f"{prefix}/share/man/man1/weightfs.1", f"{prefix}/lib/libweightfs.a",
        f"{prefix}/lib/pkgconfig/weightfs.pc", f"{prefix}/include/weightfs/weightfs.h",
        *(f"{prefix}/include/weightfs/{header}" for header in headers)}
    version = json.loads(run(weightfs, "version", "--json").stdout)
    assert pkg_config(destdir, "--modversion")[0] in version.values()


def test_library_elsewhere(weightfs, tmp_path):
    """LIBDIR and INCLUDEDIR of a distribution are in weightfs.pc as they were given."""
    make(weightfs, "install", f"DESTDIR={tmp_path}", "PREFIX=/usr", "LIBDIR=/usr/lib/riscv64-linux-gnu",
         "INCLUDEDIR=/else/where")
    pc = (tmp_path / "usr/lib/riscv64-linux-gnu/pkgconfig/weightfs.pc").read_text()
    assert "libdir=${prefix}/lib/riscv64-linux-gnu\n" in pc
    assert "includedir=/else/where\n" in pc
    assert (tmp_path / "usr/lib/riscv64-linux-gnu/libweightfs.a").exists()
    assert (tmp_path / "else/where/weightfs/lib/err.h").exists()


def test_uninstall(weightfs, tmp_path):
    """Everything goes, and nothing that was there before."""
    others = tmp_path / PREFIX.removeprefix("/") / "include" / "other.h"
    others.parent.mkdir(parents=True)
    others.write_text("mine")
    where = (f"DESTDIR={tmp_path}", f"PREFIX={PREFIX}")
    make(weightfs, "install", *where)
    assert len(installed(tmp_path)) > 10
    make(weightfs, "uninstall", *where)
    assert installed(tmp_path) == {os.fspath(others.relative_to(tmp_path))}
    assert not (others.parent / "weightfs").exists()
    make(weightfs, "uninstall", *where)


@pytest.mark.parametrize("flags", [["-std=c11", "-pedantic"], ["-std=c17", "-D_GNU_SOURCE", "-O2"], ["-std=gnu2x"]],
                         ids=" ".join)
def test_header_alone(destdir, tmp_path, flags):
    """The header needs nothing before it, whatever the dialect; a call of every part links."""
    source = tmp_path / "calls.c"
    source.write_text("""
#include <weightfs/weightfs.h>
typedef void (*function)(void);
int main(void)
{
	const function calls[] = {
		(function)wfs_err_set, (function)wfs_safetensors_parse, (function)wfs_safetensors_build,
		(function)wfs_dtype_find, (function)wfs_npy_parse, (function)wfs_npy_to_c, (function)wfs_shard_plan,
		(function)wfs_shard_name, (function)wfs_shard_index_parse, (function)wfs_shard_index_build,
		(function)wfs_size_parse,
	};
	for (size_t i = 0; i < WFS_ARRAY_SIZE(calls); i++)
		if (!calls[i])
			return 1;
	return 0;
}
""")
    compile_program(destdir, source, tmp_path / "calls", *flags)
    run(tmp_path / "calls")


# ---- the examples ----

def listed(output):
    """{name: (dtype, shape, bytes)} as list_tensors prints it."""
    rows = (line.rsplit("\t", 3) for line in output.splitlines())
    return {name: (dtype, json.loads(shape), int(size)) for name, dtype, shape, size in rows}


def test_list_tensors(programs, tmp_path):
    from safetensors import safe_open
    from safetensors.numpy import save_file
    path = tmp_path / "model.safetensors"
    save_file({"w": numpy.ones((3, 4), "float32"), "s": numpy.ones((), "int64"), "e": numpy.ones((0, 7), "float16"),
               "ü/\\x": numpy.ones((2, 1, 5), "uint8"), "": numpy.ones(1, "bool")}, path, metadata={"format": "pt"})
    found = listed(run(programs["list_tensors"], path).stdout)
    with safe_open(path, framework="np") as f:
        assert found.keys() == set(f.keys())
        for name, (dtype, shape, size) in found.items():
            assert (dtype, shape) == (f.get_slice(name).get_dtype(), f.get_slice(name).get_shape())
            assert size == f.get_tensor(name).nbytes


@pytest.mark.parametrize("content, reason", [(b"", "header-too-small"), (b"\xff" * 20, "header-too-large"),
                                             (raw("{}")[:9], "header-cut"), (raw("[]"), "header-not-object")])
def test_list_tensors_refuses(programs, tmp_path, content, reason):
    path = tmp_path / "wrong.safetensors"
    path.write_bytes(content)
    done = run(programs["list_tensors"], path, check=False)
    assert (done.returncode, done.stdout) == (1, "") and reason in done.stderr


def test_write_file(programs, tmp_path):
    """The same bytes as Python's safetensors writes of the same tensors."""
    from safetensors.numpy import save_file
    run(programs["write_file"], tmp_path / "ours.safetensors")
    save_file({"weight": numpy.arange(1, 7, dtype="float32").reshape(2, 3), "step": numpy.array([1000]),
               "mask": numpy.array([True, False, False, True])}, tmp_path / "theirs.safetensors", {"format": "pt"})
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<i8", ">u2", "|b1", ">c8", "<f2"])
def test_npy_to_safetensors(programs, tmp_path, dtype, order):
    from safetensors.numpy import load_file
    for shape in [(), (0, 3), (5,), (7, 11), (2, 3, 4)]:
        array = numpy.asarray(numpy.arange(numpy.prod(shape, dtype=int)).reshape(shape), dtype, order)
        numpy.save(tmp_path / "array.npy", array)
        run(programs["npy_to_safetensors"], tmp_path / "array.npy", "a tensor", tmp_path / "new.safetensors")
        tensors = load_file(tmp_path / "new.safetensors")
        assert list(tensors) == ["a tensor"]
        assert tensors["a tensor"].shape == shape
        numpy.testing.assert_array_equal(tensors["a tensor"], array)


def test_npy_to_safetensors_refuses(programs, tmp_path):
    numpy.save(tmp_path / "text.npy", numpy.array(["no", "tensor"]))
    done = run(programs["npy_to_safetensors"], tmp_path / "text.npy", "x", tmp_path / "new", check=False)
    assert done.returncode == 1 and done.stderr
    assert not (tmp_path / "new").exists()


def in_file_order(path):
    """[(name, bytes)] as they stand in a file."""
    content = path.read_bytes()
    header = json.loads(content[8:8 + struct.unpack("<Q", content[:8])[0]])
    entries = [(name, entry["data_offsets"]) for name, entry in header.items() if name != "__metadata__"]
    return [(name, end - begin) for name, (begin, end) in sorted(entries, key=lambda entry: entry[1])]


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A directory of two shards, of 40 tensors: {name: array} in the order of the files."""
    from safetensors.numpy import load_file, save_file
    directory = tmp_path_factory.mktemp("model")
    arrays = {f"layer.{n}.ü": numpy.full((n * 37 % 23 + 1, 17), n, ["float32", "float16", "int8"][n % 3])
              for n in range(40)}
    arrays["big"] = numpy.zeros((100, 100), "float32")
    names = list(arrays)
    order = {}
    for number, half in enumerate((names[:20], names[20:]), 1):
        path = directory / f"model-0000{number}-of-00002.safetensors"
        save_file({name: arrays[name] for name in half}, path)
        loaded = load_file(path)
        order |= {name: loaded[name] for name, _ in in_file_order(path)}
    return directory, order


@pytest.mark.parametrize("size", SIZES)
def test_plan_shards(programs, model, size):
    """The plan of huggingface_hub, and the index as transformers writes it."""
    serialization = pytest.importorskip("huggingface_hub.serialization")
    directory, arrays = model
    split = serialization.split_state_dict_into_shards_factory(
        arrays, get_storage_size=lambda array: array.nbytes, max_shard_size=int(size) if size.isdigit() else size,
        filename_pattern="model{suffix}.safetensors", get_storage_id=lambda array: None)
    lines, _, index = run(programs["plan_shards"], directory, size).stdout.partition("\n\n")
    found = [line.split("\t") for line in lines.splitlines()]
    shards = {name: file for file, names in split.filename_to_tensors.items() for name in names}
    assert found == [[shards[name], name, str(array.nbytes)] for name, array in arrays.items()]
    if not split.is_sharded:
        assert index == ""
        return
    total = sum(array.nbytes for array in arrays.values())
    metadata = {"total_parameters": sum(array.size for array in arrays.values()), "total_size": total}
    assert split.metadata["total_size"] == total
    assert index == json.dumps({"metadata": metadata, "weight_map": shards}, indent=2, sort_keys=True) + "\n"
