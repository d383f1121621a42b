"""lib/npy against NumPy, on the same bytes.

npy_cli (tests/unit/npy_cli.c) says valid where numpy.load(allow_pickle=False) makes
an array of a dtype that safetensors has, of a header of the FORM that lib/npy.h
describes, with the same fields, and converts the array to the bytes that numpy.save
writes of it. ONLY_NUMPY has examples of the rest. Environment:

    WEIGHTFS_NPY         the built helper; else tests/npy_cli in WEIGHTFS_BUILD, else in build/
    WEIGHTFS_DIFF_COUNT  random files of each kind (default 1000)
    WEIGHTFS_DIFF_SEED   seed of the random files (default 1)
"""

import io
import itertools
import os
import pathlib
import random
import re
import subprocess
import warnings

import pytest

np = pytest.importorskip("numpy")

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(os.environ.get("WEIGHTFS_BUILD", ROOT / "build"))
COUNT = int(os.environ.get("WEIGHTFS_DIFF_COUNT", "1000"))
SEED = os.environ.get("WEIGHTFS_DIFF_SEED", "1")
BATCH = 500
ROOMS = [(), (8, 8, 0), (64, 40, 8), (100, 4096, 4096)]

DTYPES = {"|b1": "BOOL", "|u1": "U8", "|i1": "I8", "<i2": "I16", "<u2": "U16", "<f2": "F16", "<i4": "I32",
          "<u4": "U32", "<f4": "F32", "<c8": "C64", "<i8": "I64", "<u8": "U64", "<f8": "F64"}
OTHER_DTYPES = {"<f16": "npy-dtype", "<c16": "npy-dtype", "<c32": "npy-dtype", "<U3": "npy-dtype",
                "|S4": "npy-dtype", "<M8[ns]": "npy-dtype", "<m8[s]": "npy-dtype", "|V5": "npy-dtype"}

# The form of the headers that lib/npy reads. NumPy reads more: see ONLY_NUMPY.
SPACE = r"[ \t\n]*"
STRING = r"[uU]?(?:'[^'\\]*'|\"[^\"\\]*\")"
NUMBER = r"(?:0|[1-9][0-9]*)L?"
TUPLE = rf"\({SPACE}(?:{NUMBER}{SPACE},{SPACE})*(?:{NUMBER}{SPACE})?\)"
PAIR = rf"({STRING}){SPACE}:{SPACE}({STRING}|True|False|{TUPLE})"
DICT = rf"\{{{SPACE}" + rf"{PAIR}{SPACE},{SPACE}" * 2 + rf"{PAIR}{SPACE}(?:,{SPACE})?\}}"
FORM = re.compile(rf"[ \t]*{DICT}(?:[ \t]*|{SPACE}\n)")
DESCR = re.compile(r"[<>=|]?[A-Za-z?_]+(?:[1-9][0-9]*)?")


def has_the_form(header):
    """Whether lib/npy must accept what NumPy accepts."""
    match = FORM.fullmatch(header.decode("latin1"))
    if not match:
        return False
    words = [word.lstrip("uU").strip("'\"") for word in match.groups()]
    pairs = dict(zip(words[::2], words[1::2]))
    return len(pairs) == 3 and DESCR.fullmatch(pairs["descr"]) is not None


@pytest.fixture(scope="session")
def npy_cli():
    path = pathlib.Path(os.environ.get("WEIGHTFS_NPY", BUILD / "tests/npy_cli"))
    if not os.access(path, os.X_OK):
        pytest.fail(f"no helper at {path}: run make unit-programs, or set WEIGHTFS_NPY")
    return path.resolve()


class Answer:
    def __init__(self, line, path):
        words = line.split("\t")[0].split(" ")
        self.verdict = words[0]
        self.fields = words[2:]
        self.made = None
        if self.verdict == "valid":
            made = path.with_name(path.name + ".out")
            self.made = made.read_bytes()
            made.unlink()


class Helper:
    """Asks about many files at a time."""

    def __init__(self, program, directory):
        self.program = program
        self.directory = directory

    def ask(self, files, room=()):
        paths = []
        for i, data in enumerate(files):
            path = self.directory / f"{i}.npy"
            path.write_bytes(data)
            paths.append(path)
        run = subprocess.run([self.program, *map(str, room)], input="".join(f"{p}\n" for p in paths), text=True,
                             capture_output=True)
        assert run.returncode == 0, run.stderr
        lines = run.stdout.splitlines()
        assert [line.split("\t")[1] for line in lines] == [str(p) for p in paths]
        return [Answer(line, path) for line, path in zip(lines, paths)]

    def load(self, data):
        """The array that NumPy makes of a file, or None."""
        path = self.directory / "loaded.npy"
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with open(path, "rb") as file:
                    return np.load(file, allow_pickle=False)
            except Exception:  # whatever it is, and there are many kinds, it is not an array
                return None


@pytest.fixture
def helper(npy_cli, tmp_path):
    return Helper(npy_cli, tmp_path)


def safetensors_dtype(dtype):
    try:
        return DTYPES.get(dtype.newbyteorder("<").str)
    except TypeError:  # StringDType
        return None


def saved(array):
    """As numpy.save writes it, little endian and in C order."""
    out = io.BytesIO()
    np.save(out, np.ascontiguousarray(array).reshape(array.shape).astype(array.dtype.newbyteorder("<")))
    return out.getvalue()


def data_place(data):
    """(where a header's text begins, where the data begin)"""
    start = 10 if data[6] == 1 else 12
    return start, start + int.from_bytes(data[8:start], "little")


def expected_fields(data, array):
    start, data_at = data_place(data)
    big = array.dtype.itemsize > 1 and array.dtype.str[0] == ">"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = io.BytesIO(data)
        version = np.lib.format.read_magic(file)
        _, fortran, _ = np.lib._format_impl._read_array_header(file, version)
    return [safetensors_dtype(array.dtype), "F" if fortran else "C", "big" if big else "little", str(data_at),
            str(array.nbytes), ",".join(map(str, array.shape)) or "-"]


def judge(helper, data, answer):
    """What is wrong with an answer, or None; and whether it was valid."""
    array = helper.load(data)
    if array is None or safetensors_dtype(array.dtype) is None:
        return "NumPy makes no such array of it" if answer.verdict == "valid" else None
    start, data_at = data_place(data)
    if answer.verdict == "npy-long":
        return None if data_at + array.nbytes < len(data) else "nothing is left over"
    if answer.verdict != "valid":
        return "NumPy takes it, and it has the form" if has_the_form(data[start:data_at]) else None
    if not has_the_form(data[start:data_at]):
        return "NumPy takes it, but it has not the form"
    if answer.fields != expected_fields(data, array):
        return f"other fields: {answer.fields}, not {expected_fields(data, array)}"
    if answer.made != saved(array):
        return "other bytes"
    return None


def compare(helper, files, room=()):
    """Fails with the first file that the two do not agree on. Returns the verdicts."""
    verdicts = []
    files = list(files)
    for start in range(0, len(files), BATCH):
        batch = files[start : start + BATCH]
        for data, answer in zip(batch, helper.ask(batch, room)):
            wrong = judge(helper, data, answer)
            assert wrong is None, f"{wrong}; {answer.verdict} {answer.fields}\n{data[:1000]!r}"
            verdicts.append(answer.verdict)
    return verdicts


# ---- files ----


def make_file(header, data=b"", version=1, length=None):
    if isinstance(header, str):
        header = header.encode("utf8" if version == 3 else "latin1")
    length = len(header) if length is None else length
    size = 2 if version == 1 else 4
    return b"\x93NUMPY" + bytes([version, 0]) + length.to_bytes(size, "little") + header + data


def random_array(rng, max_elements=600):
    ndim = rng.choice([0, 1, 1, 2, 2, 2, 3, 3, 4, 5, 6])
    shape = []
    for _ in range(ndim):
        most = max(1, max_elements // max(1, int(np.prod(shape))))
        shape.append(0 if rng.random() < 0.03 else rng.randint(1, min(most, rng.choice([1, 3, 9, 300]))))
    dtype = np.dtype(rng.choice(list(DTYPES)))
    data = np.frombuffer(rng.randbytes(int(np.prod(shape)) * dtype.itemsize), "|u1")
    if dtype.kind == "b":
        data = data & 1
    array = data.view(dtype).reshape(shape)
    if rng.random() < 0.5:
        array = np.asfortranarray(array)
    if rng.random() < 0.3:
        array = array.astype(array.dtype.newbyteorder(">"))
    return array


def written(array, version=None):
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.lib.format.write_array(out, array, version=version)
    return out.getvalue()


def written_file(rng):
    return written(random_array(rng), rng.choice([None, (1, 0), (2, 0), (3, 0)]))


SPELLINGS = ["{s}{d}"] * 4 + ["{c}", "{s}{c}", "{n}"]


def random_descr(rng):
    dtype = np.dtype(rng.choice(list(DTYPES)))
    text = rng.choice(SPELLINGS).format(s=rng.choice("<>=|"), d=dtype.str[1:], c=dtype.char, n=dtype.name)
    return text, dtype.itemsize


ODD_DESCRS = ["'|O'", "'O'", "object", "[('a','<f4')]", "('<f4',(1,))", "('<f4',())", "'f4,f4'", "'1f4'", "'()f4'",
              "'f04'", "'f 4'", "'\\x664'", "r'f4'", "b'f4'", "'''f4'''", "'f''4'", "None", "4", "{}", "[]", "('f4')",
              "'<f16'", "'<c16'", "'<U3'", "'S4'", "'M8[ns]'", "'V4'", "'T'", "''", "'<'", "'float'", "'<float'"]
ODD_NUMBERS = ["0x2", "1_0", "00", "-1", "-0", "+2", "True", "2.0", "2l", "2 L", "2LL", "2L L", "02", "1e0", "None",
               "'2'", "2j", "9223372036854775807", "9223372036854775808", "4294967296", "18446744073709551616", "(2)"]
ODD_SHAPES = ["3", "(3)", "[3]", "(,)", "((3,))", "(3,),", "(3, 4", "None", "()()", "tuple()", "(2,)*2", "(0,)+(1,)"]


def random_space(rng, odd):
    if rng.random() > odd:
        return rng.choice(["", "", " "])
    return rng.choice(["  ", "\t", "\n", " \n ", "\r\n", "\f", "#\n", "\\\n", "\v", "\xa0", "\0"])


def random_quote(rng, text):
    quote = rng.choice("'\"")
    return rng.choice([""] * 9 + ["u", "U"]) + quote + text + quote


def random_number(rng, odd):
    if rng.random() < odd:
        return rng.choice(ODD_NUMBERS)
    return str(rng.choice([0, 1, 1, 2, 3, 5])) + ("L" if rng.random() < odd else "")


def random_tuple(rng, odd):
    if rng.random() < odd:
        return rng.choice(ODD_SHAPES)
    numbers = [random_number(rng, odd) for _ in range(rng.choice([0, 1, 1, 2, 3, 4]))]

    def space():
        return random_space(rng, odd / 2)

    text = ",".join(space() + n + space() for n in numbers)
    if len(numbers) == 1 or (numbers and rng.random() < 0.2):
        text += "," + space()
    return f"({text})"


def random_header(rng):
    """A dict, with or without something odd in it, and bytes of data that fit it well."""
    odd = rng.choice([0, 0.02, 0.1])
    descr, itemsize = random_descr(rng)
    shape = random_tuple(rng, odd)
    pairs = [["descr", rng.choice(ODD_DESCRS) if rng.random() < odd else random_quote(rng, descr)],
             ["fortran_order", rng.choice(["0", "None", "true", "(False)"]) if rng.random() < odd
              else rng.choice(["True", "False"])],
             ["shape", shape]]
    rng.shuffle(pairs)
    if rng.random() < odd:
        pairs.append(rng.choice([["shape", shape], ["x", "1"], ["descr", "'<f4'"]]))
    if rng.random() < odd / 2:
        pairs.pop()

    def space():
        return random_space(rng, odd)

    text = ",".join(f"{space()}{random_quote(rng, key)}{space()}:{space()}{value}{space()}" for key, value in pairs)
    text = "{" + text + rng.choice(["", ",", ", "]) + "}"
    if rng.random() < odd:
        text = rng.choice([" ", "\t", "\n", "\f", "("]) + text
    text += rng.choice(["", "\n", "   \n"])
    if rng.random() < odd:
        text += rng.choice([" ", "x", ",", "\n \n", "\n\t", "#"])
    count = itemsize
    for number in re.findall(r"\d+", shape):
        count *= int(number)
    return text, count


def random_file(rng):
    text, count = random_header(rng)
    count = min(count, 10000) + (rng.choice([-1, 1]) if rng.random() < 0.05 else 0)
    return make_file(text, bytes(max(count, 0)), rng.choice([1, 1, 2, 3]))


TOKENS = [b"'", b'"', b"(", b")", b"{", b"}", b",", b":", b" ", b"\n", b"0", b"1", b"L", b"u", b"True", b"False",
          b"<", b">", b"f4", b"\\", b"#", b"\0", b"\xff", b"-", b"\t", b"\r", b"[", b"]", b"''"]


def mutated_file(rng):
    data = bytearray(written_file(rng) if rng.random() < 0.5 else random_file(rng))
    place = data_place(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(min(len(data), place[1] + 2) if rng.random() < 0.9 else len(data))
        end = at + rng.choice([0, 1, 1, 2, 5])
        token = rng.choice(TOKENS) if rng.random() < 0.8 else rng.randbytes(1)
        before = len(data)
        data[at:end] = token if rng.random() < 0.8 else b""
        # Mostly the length stays right, so that more than the length is tried.
        if at >= place[0] and rng.random() < 0.9 and data[6] in (1, 2, 3):
            size = place[0] - 8
            length = max(0, place[1] - place[0] + len(data) - before)
            data[8 : 8 + size] = length.to_bytes(size, "little")
            place = data_place(data)
    return bytes(data)


def random_files(kind, make, count=COUNT):
    rng = random.Random(f"{kind} {SEED}")
    return [make(rng) for _ in range(count)]


# ---- tests ----


@pytest.mark.parametrize("room", ROOMS, ids=str)
def test_what_numpy_writes(helper, room):
    """Verdict, fields, the header that is built and the converted bytes."""
    verdicts = compare(helper, random_files("written", written_file, max(COUNT // 4, 300)), room)
    assert set(verdicts) == {"valid"}


def test_every_dtype_order_and_version(helper):
    files = []
    for descr, big, fortran, version in itertools.product(DTYPES, "<>", [False, True], [(1, 0), (2, 0), (3, 0)]):
        dtype = np.dtype(descr)
        array = np.frombuffer(bytes(i % 2 if descr == "|b1" else i for i in range(24)) * dtype.itemsize, dtype)
        for shape in [(24,), (2, 3, 4), (4, 1, 6), (2, 3, 2, 2), (24, 1, 1, 1, 1, 1)]:
            ordered = array.reshape(shape).astype(dtype.newbyteorder(big))
            files.append(written(np.asfortranarray(ordered) if fortran else ordered, version))
    assert set(compare(helper, files)) == {"valid"}


def test_every_length_of_a_built_header(helper):
    """Through all places of its end within 64 bytes; the arrays are empty."""
    files = []
    for ndim, digits in itertools.product(range(63), [1, 2, 3, 5, 9, 16]):
        shape = (10 ** (digits - 1),) + (1,) * ndim + (0,)
        files += [written(np.empty(shape, "|u1")), written(np.empty(shape[::-1], "|u1"))]
    assert set(compare(helper, files)) == {"valid"}


@pytest.mark.long
def test_large_arrays(helper):
    """More than a tile and more than one read, in every element size."""
    files = []
    for dtype, shape in itertools.product(["|u1", ">f2", "<f4", ">c8"],
                                          [(3000, 1100), (7, 300000), (5, 400, 900), (2,) * 21, (1100, 3, 3, 200)]):
        array = np.random.default_rng(1).integers(0, 255, np.prod(shape) * np.dtype(dtype).itemsize, "|u1")
        files.append(written(np.asfortranarray(array.view(dtype).reshape(shape))))
    for data in files:
        assert compare(helper, [data]) == ["valid"]


@pytest.mark.parametrize("descr", OTHER_DTYPES)
def test_other_dtypes(helper, descr):
    assert [a.verdict for a in helper.ask([written(np.zeros((2, 3), descr))])] == [OTHER_DTYPES[descr]]


def test_objects_and_structures(helper):
    files = [written(np.array([{}, 1])), written(np.zeros(3, [("a", "<f4"), ("b", "<i2")])),
             written(np.zeros(3, [("a", object)]))]
    assert [a.verdict for a in helper.ask(files)] == ["npy-object", "npy-structured", "npy-structured"]


def all_spellings():
    """Every short text, and every name that NumPy has for something."""
    short = [chr(c) for c in range(0x20, 0x7f) if chr(c) not in "'\\"]
    codes = ["".join(t) for n in (1, 2) for t in itertools.product(short, repeat=n)]
    letters = "?bBhHiIlLqQpPnNefdFDgGcaSUVOMmTu"
    sized = ["".join(t) for t in itertools.product("<>=|", letters, ["", "1", "2", "4", "8", "16"])]
    names = {str(n) for n in [*np.sctypeDict, *dir(np), "int", "float", "bool", "complex", "str", "object", "half"]}
    return codes + sized + sorted(names) + [s + n for s in "<>=|" for n in sorted(map(str, np.sctypeDict))]


@pytest.mark.long
def test_every_spelling_of_a_dtype(helper):
    files = []
    for descr in all_spellings():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                size = np.dtype(descr).itemsize
            except Exception:
                size = 1
        files.append(make_file(f"{{'descr': '{descr}', 'fortran_order': False, 'shape': (1,)}}", bytes(size)))
    assert compare(helper, files).count("valid") > 13 * 5


@pytest.mark.long
def test_sizes_at_the_limit(helper):
    """Empty arrays, of dimensions whose product is near 2^63."""
    sizes = [1, 2, 4, 2**31, 2**32, 2**60, 2**60 - 1, 2**61 - 1, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64]
    files = []
    for descr, numbers in itertools.product(["u1", "f4", "c8"], itertools.product(sizes, [0, 1], sizes)):
        for shape in (numbers, numbers[::-1], sorted(numbers)):
            shape = ",".join(map(str, shape))
            fortran = len(files) % 2 == 0
            files.append(make_file(f"{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': ({shape})}}"))
    verdicts = compare(helper, files)
    assert {"valid", "npy-shape", "npy-short"} == set(verdicts)


@pytest.mark.parametrize("ndim", [63, 64, 65])
def test_many_dimensions(helper, ndim):
    shape = "(" + "1," * ndim + ")"
    data = make_file(f"{{'descr': '<f4', 'fortran_order': True, 'shape': {shape}}}", b"abcd")
    assert compare(helper, [data]) == ["valid" if ndim <= 64 else "npy-shape"]


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("length", [9999, 10000, 10001, 65535])
def test_long_headers(helper, version, length):
    text = "{'descr': '<f4', 'fortran_order': False, 'shape': ()}"
    data = make_file(text.ljust(length - 1) + "\n", b"abcd", version)
    assert compare(helper, [data]) == ["valid" if length <= 10000 else "npy-header-too-large"]


def test_random_headers(helper):
    verdicts = compare(helper, random_files("headers", random_file))
    assert len(verdicts) < 100 or len(verdicts) // 4 < verdicts.count("valid") < len(verdicts)
    reasons = {"npy-header", "npy-shape", "npy-dtype", "npy-structured", "npy-short"}
    assert len(verdicts) < 1000 or reasons <= set(verdicts)


def test_mutated_files(helper):
    compare(helper, random_files("mutations", mutated_file))


def test_python_2_headers(helper):
    """With L behind the numbers; NumPy reads them only where nothing else is in its way."""

    def with_l(rng):
        text, count = random_header(rng)
        text = re.sub(r"(\d)([,)])", r"\1L\2", text)
        return make_file(text, bytes(min(count, 10000)), rng.choice([1, 2, 3]))

    verdicts = compare(helper, random_files("python2", with_l))
    assert "valid" in verdicts


@pytest.mark.long
def test_padding(helper):
    """White space before and behind the dict."""
    files = []
    for n in range(5):
        for spaces in itertools.product(" \t\n", repeat=n):
            for number in "3", "3L":
                text = f"{{'descr': 'u1', 'fortran_order': False, 'shape': ({number},)}}"
                for version in 1, 3:
                    files.append(make_file("".join(spaces) + text, b"abc", version))
                    files.append(make_file(text + "".join(spaces), b"abc", version))
    assert "valid" in compare(helper, files)


def test_beginnings_are_cut_or_short(helper):
    rng = random.Random(f"cuts {SEED}")
    files = []
    for _ in range(max(COUNT // 10, 100)):
        data = written_file(rng)
        files.append((data[: rng.randrange(len(data))], data_place(data)[1]))
    for (data, data_at), answer in zip(files, helper.ask([data for data, _ in files])):
        assert answer.verdict == ("npy-short" if len(data) >= data_at else "npy-cut"), data
        assert helper.load(data) is None


def header(descr="'|u1'", shape="(3,)"):
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


# Each item of the list in lib/npy.h: (header, reason here).
ONLY_NUMPY = [
    (header("'\\x751'"), "npy-header"), (header("'u' '1'"), "npy-dtype"), (header("'''u1'''"), "npy-dtype"),
    (header("r'u1'"), "npy-header"), (header().replace("'shape'", "R'shape'"), "npy-header"),
    (header() + "# text", "npy-header"), (header(shape="( # text\n3,)"), "npy-shape"),
    (header().replace(", ", ", \\\n"), "npy-header"), (header(shape="(\r3,)"), "npy-shape"),
    (header() + "\f", "npy-header"), ("\n" + header(), "npy-header"),
    (header().replace("{", "{'shape': (1,), "), "npy-header"), (f"({header()})", "npy-header"),
    (header().replace("'shape'", "('shape')"), "npy-header"), (header("('u1')"), "npy-structured"),
    (header(shape="((3),)"), "npy-shape"), (header().replace("False", "(False)"), "npy-header"),
    (header(shape="((3,))"), "npy-shape"), (header(shape="(0x3,)"), "npy-header"),
    (header(shape="(3, 1_0)"), "npy-header"), (header(shape="(3, 00)"), "npy-header"),
    (header(shape="(3, -0)"), "npy-shape"), (header() + "\n ", "npy-header"),
    (header(shape="(3, +1)"), "npy-shape"), (header(shape="(3 L,)"), "npy-header"),
    (header(shape="(3L L,)"), "npy-header"), (header("'u 1'"), "npy-dtype"), (header("'u01'"), "npy-dtype"),
    (header("'u+1'"), "npy-dtype"), (header("'\t'"), "npy-header"), (header("'()u1'"), "npy-structured"),
    (header("'1u1'"), "npy-structured"), (header("('u1', (1,))"), "npy-structured"),
    (header("('u1', ())"), "npy-structured"),
]


@pytest.mark.parametrize("text, reason", ONLY_NUMPY)
def test_what_only_numpy_takes(helper, text, reason):
    count = 0 if re.search("00|-0", text) else 30 if "1_0" in text else 24 if "\t" in text else 3
    data = make_file(text, bytes(count))
    array = helper.load(data)
    assert safetensors_dtype(array.dtype) and array.nbytes == count
    assert helper.ask([data])[0].verdict == reason


def test_left_over_bytes_are_refused(helper):
    files = [data + b"x" for data in random_files("long", written_file, 100)]
    assert set(compare(helper, files)) == {"npy-long"}
