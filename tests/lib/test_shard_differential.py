"""lib/shard_plan, lib/shard_name, lib/shard_index and lib/size_text against Python.

shard_cli (tests/unit/shard_cli.c) plans as huggingface_hub does, gives the names that transformers gives,
and writes an index as json.dumps does. Environment:

    WEIGHTFS_BUILD        where tests/shard_cli was built; else build/
    WEIGHTFS_DIFF_COUNT   random cases of each kind (default 3000)
    WEIGHTFS_DIFF_SEED    seed of the random cases (default 1)
"""

import errno
import json
import math
import os
import pathlib
import random
import struct
import subprocess
from fractions import Fraction

import pytest

hub = pytest.importorskip("huggingface_hub")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from huggingface_hub.serialization._base import parse_size_to_int, split_state_dict_into_shards_factory
from huggingface_hub.serialization._torch import get_torch_storage_id, get_torch_storage_size
from transformers.modeling_utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, _add_variant

from support import models

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
COUNT = int(os.environ.get("WEIGHTFS_DIFF_COUNT", "3000"))
SEED = os.environ.get("WEIGHTFS_DIFF_SEED", "1")
INT64 = 2**63


@pytest.fixture(scope="session")
def ask():
    """ask(requests): the helper's answers."""
    path = pathlib.Path(os.environ.get("WEIGHTFS_BUILD", ROOT / "build")) / "tests/shard_cli"
    if not os.access(path, os.X_OK):
        pytest.fail(f"no helper at {path}: run make unit-programs, or set WEIGHTFS_BUILD")

    def ask(requests):
        lines = "".join(json.dumps(request) + "\n" for request in requests)
        run = subprocess.run([path.resolve()], input=lines, text=True, capture_output=True)
        assert run.returncode == 0, run.stderr
        answers = [json.loads(line) for line in run.stdout.splitlines()]
        assert len(answers) == len(requests)
        return answers

    return ask


def rng_of(kind):
    return random.Random(f"{kind} {SEED}")


# ---- plans ----


def random_plan(rng):
    """(sizes, storage numbers, limit in bytes)"""
    limit = rng.choice([0, 1, 10, 100, 1000, 10**9, rng.randrange(2**62)])
    n = rng.choice([0, 1, 2, 5, 20, 100])
    kinds = [lambda: 0, lambda: limit, lambda: limit + 1, lambda: max(0, limit - 1),
             lambda: rng.randint(0, limit), lambda: rng.randint(0, 1 + limit // 4), lambda: limit + rng.randint(0, 100)]
    kinds = rng.sample(kinds, rng.randint(1, len(kinds)))
    shared = rng.choice([0, 0, 1, 3, n // 2])
    return [rng.choice(kinds)() for _ in range(n)], [rng.randint(0, shared) for _ in range(n)], limit


def hub_plan(sizes, storage, limit):
    """huggingface_hub's answer: its split, and what wfs_shard_plan should say."""
    state = {f"t{i}": pair for i, pair in enumerate(zip(sizes, storage))}
    split = split_state_dict_into_shards_factory(
        state, get_storage_size=lambda t: t[0], get_storage_id=lambda t: t[1] or None,
        filename_pattern="model{suffix}.safetensors", max_shard_size=limit)
    number = {name: i for i, name in enumerate(split.filename_to_tensors)}
    return split, [len(number), [number[split.tensor_to_filename[name]] for name in state]]


def test_plans(ask):
    rng = rng_of("plans")
    cases = [random_plan(rng) for _ in range(2 * COUNT)]
    requests = [["plan", sizes, storage if any(storage) else None, limit] for sizes, storage, limit in cases]
    many = 0
    for case, answer in zip(cases, ask(requests)):
        assert answer == hub_plan(*case)[1], case
        many += answer[0] > 1
    assert COUNT < 100 or COUNT // 2 < many < 2 * COUNT


def test_plan_gives_the_file_names_of_the_hub(ask):
    rng = rng_of("plan names")
    for _ in range(20):
        case = random_plan(rng)
        split, (shards, _) = hub_plan(*case)
        if shards:
            names = [["name", "model", None, 0, 0]] if shards == 1 else [
                ["name", "model", None, i + 1, shards] for i in range(shards)]
            assert ask(names) == list(split.filename_to_tensors)


def test_plan_of_torch_tensors(ask):
    """Views and tied tensors count as their storage, once."""
    rng = rng_of("torch")
    for _ in range(20):
        owned = [torch.zeros(rng.randint(0, 300), dtype=rng.choice([torch.float32, torch.float16, torch.int8]))
                 for _ in range(20)]
        state = {f"t{i}": t for i, t in enumerate(owned)}
        for i in range(10):
            t = rng.choice(owned)
            state[f"view{i}"] = t[: rng.randint(0, len(t))]
        names = rng.sample(list(state), len(state))
        state = {name: state[name] for name in names}
        split = hub.split_torch_state_dict_into_shards(state, max_shard_size=1000)
        ids = {}
        storage = [ids.setdefault(get_torch_storage_id(t), len(ids) + 1) for t in state.values()]
        sizes = [get_torch_storage_size(t) for t in state.values()]
        number = {name: i for i, name in enumerate(split.filename_to_tensors)}
        want = [len(number), [number[split.tensor_to_filename[name]] for name in state]]
        assert ask([["plan", sizes, storage, 1000]]) == [want]


# ---- names ----


def random_word(rng):
    return "".join(rng.choice("abz019_- äß\U0001f600") for _ in range(rng.randint(1, 12)))


def transformers_names(base, variant, count):
    """As save_pretrained makes them: the file or its shards, and the index."""
    name = _add_variant(SAFE_WEIGHTS_NAME.replace("model", base), variant)
    pattern = name.replace(".bin", "{suffix}.bin").replace(".safetensors", "{suffix}.safetensors")
    split = split_state_dict_into_shards_factory(
        {str(i): 1 for i in range(max(1, count))}, get_storage_size=lambda t: 1, filename_pattern=pattern,
        max_shard_size=1)
    return list(split.filename_to_tensors), _add_variant(SAFE_WEIGHTS_INDEX_NAME.replace("model", base), variant)


def test_names(ask):
    rng = rng_of("names")
    for _ in range(COUNT // 30):
        base, variant, count = random_word(rng), rng.choice([None, random_word(rng)]), rng.choice([0, 2, 3, 12])
        files, index = transformers_names(base, variant, count)
        numbers = [(i + 1, count) for i in range(count)] or [(0, 0)]
        made = ask([["name", base, variant, *n] for n in numbers] + [["index-name", base, variant]])
        assert made == [*files, index]
        read = ask([["parse-name", name] for name in made])
        assert read == [[base, variant, False, *n] for n in numbers] + [[base, variant, True, 0, 0]]


@pytest.mark.parametrize("base", ["model", "adapter_model", "diffusion_pytorch_model"])
@pytest.mark.parametrize("variant", [None, "fp16", "non_ema", "a.b", ""])
def test_usual_names(ask, base, variant):
    files, index = transformers_names(base, variant, 2)
    made = ask([["name", base, variant, 1, 2], ["name", base, variant, 2, 2], ["index-name", base, variant]])
    assert made == [*files, index]
    assert ask([["parse-name", index]]) == [[base, variant, True, 0, 0]]


def test_large_numbers(ask):
    cases = [(n, c) for c in (99999, 100000, 1234567) for n in (1, 99999, c)]
    assert ask([["name", "m", None, n, c] for n, c in cases]) == [
        f"m-{n:05d}-of-{c:05d}.safetensors" for n, c in cases]


def test_every_name_that_is_read_is_built_again(ask):
    """But for zeros before numbers of more than five digits."""
    rng = rng_of("parse")
    parts = ["model", "a", ".", ".safetensors", ".index", ".json", "-00001", "-of-", "-of-00003", "-00012", "fp16", "0"]
    names = ["".join(rng.choices(parts, k=rng.randint(1, 6))) + rng.choice([".safetensors", ".json", ""])
             for _ in range(COUNT)]
    read = [(name, n) for name, n in zip(names, ask([["parse-name", name] for name in names])) if n]
    again = ask([["index-name", n[0], n[1]] if n[2] else ["name", n[0], n[1], n[3], n[4]] for _, n in read])
    zeros = [(name, back) for (name, _), back in zip(read, again) if name != back]
    assert len(read) > COUNT // 10
    assert all(len(back) < len(name) and "-0" in name for name, back in zeros), zeros[:3]


def test_names_are_bounded(ask):
    assert ask([["name", "x" * 243, None, 0, 0], ["name", "x" * 244, None, 0, 0]]) == [
        "x" * 243 + ".safetensors", errno.ENAMETOOLONG]


# ---- sizes ----


def test_sizes(ask):
    """Exact where huggingface_hub multiplies doubles, and can be a byte off."""
    rng = rng_of("sizes")
    scales = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    cases = []
    for _ in range(COUNT):
        unit = rng.choice(list(scales))
        whole = rng.choice([0, rng.randrange(10), rng.randrange(1000), rng.randrange(10**6)])
        digits = rng.choice([0, 0, 1, 2, 9])
        number = str(whole) + (f".{rng.randrange(10**digits):0{digits}d}" if digits else "")
        text = number + " " * rng.randrange(3) + rng.choice([unit, unit.lower(), unit.title()])
        cases.append((text, Fraction(number) * scales[unit]))
    for (text, exact), answer in zip(cases, ask([["size", text] for text, _ in cases])):
        want = math.floor(exact)
        assert answer == (want if want < INT64 else None), text
        theirs = parse_size_to_int(text)
        if "." not in text and want < 2**53:
            assert theirs == want, text
        assert abs(theirs - want) <= max(1, want // 2**50), text


@pytest.mark.parametrize("text", ["5", "5B", "5KiB", "5GiB", "5PB"])
def test_size_that_only_weightfs_reads(ask, text):
    assert ask([["size", text]])[0] is not None
    with pytest.raises(ValueError):
        parse_size_to_int(text)


@pytest.mark.parametrize("text", [" 5GB", "5GB ", "1e3MB", "1_000KB", "+5GB", "-5GB"])
def test_size_that_only_the_hub_reads(ask, text):
    assert ask([["size", text]]) == [None]
    assert parse_size_to_int(text)


# ---- the index ----


def expected(index):
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()


CHARACTERS = [*range(0x20, 0x7F), *range(0x20), 0x7F, 0x80, 0xE4, 0x7FF, 0x800, 0x2028, 0xD7FF, 0xE000, 0xFFFD, 0xFFFF,
              0x10000, 0x1F600, 0x10FFFF]


def random_text(rng, nul=True):
    kind = rng.choice([CHARACTERS, CHARACTERS[:95], CHARACTERS[95:], list(b'"\\/ab.')])
    text = "".join(chr(rng.choice(kind)) for _ in range(rng.choice([0, 1, 3, 20])))
    return text if nul else text.replace("\0", "\1")


def random_float(rng):
    while True:
        value = rng.choice([
            lambda: struct.unpack("<d", rng.randbytes(8))[0],
            lambda: math.ldexp(1, rng.randint(-1074, 1023)) * rng.choice([1, -1, 1 + 2**-52, 1 - 2**-53]),
            lambda: rng.randrange(2**52, 2**53) / 2**rng.randint(0, 60),
            lambda: float(rng.randrange(10**rng.randint(1, 18))),
            lambda: rng.randrange(10**6) * 10.0 ** rng.randint(-30, 30),
            lambda: round(rng.random(), rng.randint(0, 17)),
        ])()
        if math.isfinite(value):
            return value


def random_value(rng, depth=0):
    scalar = [None, True, False, rng.randrange(-INT64, INT64), rng.randrange(100), random_float(rng), random_text(rng)]
    if depth > 4 or rng.random() < 0.6:
        return rng.choice(scalar)
    if rng.random() < 0.5:
        return [random_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {random_text(rng, nul=False): random_value(rng, depth + 1) for _ in range(rng.randrange(4))}


def random_shard(rng):
    while True:
        name = random_text(rng, nul=False).replace("/", "-")
        if name not in ("", ".", ".."):
            return name


def random_index(rng, nul):
    names = [random_text(rng, nul) for _ in range(rng.choice([0, 1, 5, 30]))]
    index = {"weight_map": {name: random_shard(rng) for name in names}}
    if rng.random() < 0.9:
        index["metadata"] = {random_text(rng, nul=False): random_value(rng) for _ in range(rng.randrange(4))}
        if rng.random() < 0.7:
            index["metadata"].update(total_size=rng.randrange(INT64), total_parameters=rng.randrange(INT64))
    return index


def test_built_index(ask, tmp_path):
    """Names of every kind, NUL included."""
    rng = rng_of("build")
    indexes = [random_index(rng, nul=True) for _ in range(COUNT // 3)]
    requests = [["build", list(index["weight_map"].items()), index.get("metadata"), str(tmp_path / str(i))]
                for i, index in enumerate(indexes)]
    assert set(ask(requests)) == {"written"}
    for i, index in enumerate(indexes):
        assert (tmp_path / str(i)).read_bytes() == expected(index)


def other_text(rng, index):
    """The same index as some other program might have written it."""
    indent = rng.choice([None, 0, 1, 4, "\t"])
    return json.dumps(index, indent=indent, ensure_ascii=rng.random() < 0.5,
                      separators=rng.choice([None, (",", ":"), (" , ", " : ")])).encode()


class Rebuilt:
    """Indexes that the helper reads and writes anew."""

    def __init__(self, ask, directory):
        self.ask = ask
        self.directory = directory

    def __call__(self, texts):
        """(what it says, the new text or None) of each"""
        requests = []
        for i, text in enumerate(texts):
            paths = self.directory / f"{i}.in", self.directory / f"{i}.out"
            paths[0].write_bytes(text)
            requests.append(["rebuild", *map(str, paths)])
        answers = self.ask(requests)
        return [(answer, pathlib.Path(request[2]).read_bytes() if answer == "written" else None)
                for answer, request in zip(answers, requests)]


@pytest.fixture
def rebuilt(ask, tmp_path):
    return Rebuilt(ask, tmp_path)


def test_rebuilt_index(rebuilt):
    rng = rng_of("rebuild")
    indexes = [random_index(rng, nul=False) for _ in range(COUNT // 3)]
    for index, answer in zip(indexes, rebuilt([other_text(rng, index) for index in indexes])):
        assert answer == ("written", expected(index))


def test_floats(rebuilt):
    rng = rng_of("floats")
    index = {"metadata": {"a": [random_float(rng) for _ in range(20 * COUNT)]}, "weight_map": {}}
    # One at the boundary of every power of ten, where repr() changes its form.
    index["metadata"]["b"] = [10.0**e * f for e in range(-30, 30) for f in (1, 0.9999999999999999, 1.0000000000000002)]
    (answer, text), = rebuilt([json.dumps(index).encode()])
    assert answer == "written"
    assert text.splitlines() == expected(index).splitlines()


def read_by_both(text):
    """The index if Python reads it, and jansson should; None if it is none; KeyError where jansson is stricter."""

    def number(value):
        if not -INT64 <= int(value) < INT64:
            raise KeyError("beyond 64 bits")
        return int(value)

    def real(value):
        if not math.isfinite(float(value)):
            raise KeyError("beyond a double")
        return float(value)

    def constant(name):
        raise KeyError(name)

    def pairs(items):
        if any("\0" in key for key, _ in items):
            raise KeyError("NUL in a key")
        return dict(items)

    index = json.loads(text.decode(), parse_int=number, parse_float=real, parse_constant=constant,
                       object_pairs_hook=pairs)
    try:
        json.dumps(index, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise KeyError("a lone surrogate") from None
    return index


def is_file_name(name):
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & {"/", "\0"} \
        and len(name.encode()) <= 255


def judge(text):
    """What shall come of a text: bytes, or whether jansson may refuse it."""
    try:
        index = read_by_both(text)
    except (ValueError, KeyError, RecursionError):
        return None
    if not isinstance(index, dict) or not isinstance(index.get("weight_map"), dict):
        return None
    if not all(map(is_file_name, index["weight_map"].values())):
        return None
    kept = {"weight_map": index["weight_map"]}
    if isinstance(index.get("metadata"), dict):
        kept["metadata"] = index["metadata"]
    return expected(kept)


PIECES = [b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"0", b"1e5", b"-", b".", b"\\u0000", b"\\ud800", b"\\udc00",
          b"null", b"NaN", b"Infinity", b"99999999999999999999", b"1e999", b"\xff", b"\n", b"\0", b" ", b"/", b"..",
          b'"weight_map": {},', b'"metadata": 1,']


def mutated(rng, text):
    for _ in range(rng.randint(1, 3)):
        at, end = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        end = min(end, at + rng.choice([0, 0, 1, 5]))
        text = text[:at] + rng.choice([b"", rng.choice(PIECES), rng.choice(PIECES), text[at:end] * 2]) + text[end:]
    return text


@pytest.mark.long
def test_mutated_indexes(rebuilt):
    """Read exactly where Python reads it, but for what jansson does not hold; and then the same."""
    rng = rng_of("mutated")
    small = {"metadata": {"total_size": 123, "x": [1.5, "a"]}, "weight_map": {"a.b": "m-1", "c": "m-2", "d\n": "m-1"}}
    texts = [mutated(rng, other_text(rng, small)) for _ in range(2 * COUNT)]
    written = 0
    for text, (answer, made) in zip(texts, rebuilt(texts)):
        want = judge(text)
        assert (answer == "written") == (want is not None), (answer, text)
        assert made == want, text
        written += made is not None
    assert COUNT < 100 or COUNT // 20 < written < 2 * COUNT


@pytest.mark.parametrize("text", [
    '{"weight_map": {"a": "1", "a": "2", "b": "3"}, "metadata": {"x": 1, "x": 2}}',
    '{"weight_map": {"a": "1"}, "weight_map": {"b": "2"}, "metadata": {"x": 1}, "metadata": {}}',
    '{"weight_map": {"b": "1", "a": "1", "b": "2"}}',
    '{"weight_map": {}, "metadata": [1]}',
])
def test_duplicates_and_odd_metadata(rebuilt, text):
    want = judge(text.encode())
    assert want and rebuilt([text.encode()]) == [("written", want)]


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_save_pretrained(ask, rebuilt, tmp_path, variant):
    """The index of a real model is the same bytes after reading and writing; the plan is that of its tensors."""
    model = models.llama(hidden=64, layers=3, vocabulary=300)
    model.save_pretrained(tmp_path / "model", max_shard_size="100KB", variant=variant)
    name, limit = ask([["index-name", "model", variant], ["size", "100KB"]])
    text = (tmp_path / "model" / name).read_bytes()
    assert rebuilt([text]) == [("written", text)]

    index = json.loads(text)
    entries = random.Random(SEED).sample(list(index["weight_map"].items()), len(index["weight_map"]))
    assert ask([["build", entries, index["metadata"], str(tmp_path / "built")]]) == ["written"]
    assert (tmp_path / "built").read_bytes() == text

    state = model.state_dict()
    (shards, shard), = ask([["plan", [t.nbytes for t in state.values()], None, limit]])
    assert shards > 5
    names = ask([["name", "model", variant, i + 1, shards] for i in range(shards)])
    assert index["weight_map"] == {tensor: names[i] for tensor, i in zip(state, shard)}
    assert sorted(names) == sorted(p.name for p in (tmp_path / "model").glob("*.safetensors"))
