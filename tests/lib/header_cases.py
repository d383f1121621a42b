"""Safetensors files that are right, wrong, or odd: named ones, and random ones.

Everything here is bytes of whole files. Random functions take a
random.Random and use nothing else, so that a seed makes the same files.
"""

import ctypes
import json

BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8,
    "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}
DTYPES = list(BITS)
MAX_HEADER = 100_000_000
MAX_U64 = 2**64 - 1


def make(text, data=0, n=None):
    """A file of this header and `data` bytes of zeros (or these bytes)."""
    if isinstance(text, str):
        text = text.encode("utf-8", "surrogatepass")
    if isinstance(data, int):
        data = b"\0" * data
    return (len(text) if n is None else n).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape="[2]", offsets="[0,8]", more=""):
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}{more}}}'


def one(data=8, **kwargs):
    """A file of one tensor, "a"."""
    return make('{"a":' + entry(**kwargs) + "}", data)


def ignored(value):
    """A file with this JSON text in a key that is ignored."""
    return one(more=f',"x":{value}')


def nested(levels, opening="[", closing="]"):
    return opening * levels + "1" + closing * levels


A = '"a":' + entry()

# What the README of the format forbids or does not mention, and the library takes.
ACCEPTED = {
    "empty-header": make("{}"),
    "one-tensor": one(),
    "leading-space": make(" \n\r\t{" + A + "}", 8),
    "padding-spaces": make("{" + A + "}       ", 8),
    "padding-lines": make("{" + A + "}\n\t\r ", 8),
    "unpadded": make("{" + A + "} ", 8),
    "duplicate-name": make("{" + A + "," + A + "}", 8),
    "duplicate-name-escaped": make("{" + A + ',"\\u0061":' + entry() + "}", 8),
    "duplicate-name-first-elsewhere": make('{"a":' + entry(offsets="[100,1]") + "," + A + "}", 8),
    "duplicate-name-first-overflows": make('{"a":' + entry(shape=f"[{MAX_U64},2]") + "," + A + "}", 8),
    "metadata-null": make('{"__metadata__":null}'),
    "metadata-empty": make('{"__metadata__":{}}'),
    "metadata-last": make("{" + A + ',"__metadata__":{"k":"v"}}', 8),
    "metadata-escaped": make('{"\\u005f_metadata__":{"k":"v"}}'),
    "metadata-duplicate-key": make('{"__metadata__":{"k":"v","k":"w"}}'),
    "metadata-duplicate-key-escaped": make('{"__metadata__":{"k":"v","\\u006b":"w"}}'),
    "metadata-nul": make('{"__metadata__":{"\\u0000":"\\u0000"}}'),
    "entry-array": make('{"a":["F32",[2],[0,8]]}', 8),
    "dtype-object": make('{"a":{"dtype":{"F32":null},"shape":[2],"data_offsets":[0,8]}}', 8),
    "dtype-object-in-array": make('{"a":[{"F32":null},[2],[0,8]]}', 8),
    "dtype-escaped": one(dtype="\\u0046\\u0033\\u0032"),
    "dtype-object-escaped": make('{"a":[{"\\u004632":null},[2],[0,8]]}', 8),
    "key-escaped": make('{"a":{"\\u0064type":"F32","sh\\u0061pe":[2],"data_offset\\u0073":[0,8]}}', 8),
    "unknown-key": ignored('{"deep":[1,2.5e3,-0,null,true,false,"x"]}'),
    "unknown-key-twice": one(more=',"x":1,"x":2'),
    "unknown-key-125-arrays": ignored(nested(125)),
    "unknown-key-125-objects": ignored(nested(125, '{"k":', "}")),
    "unknown-key-large-numbers": ignored("[1e308,1e-999,0e999,18446744073709551616,-9223372036854775809]"),
    "unknown-key-pair": ignored('"\\ud83d\\ude00"'),
    "unknown-key-del": ignored('"\x7f"'),
    "order-of-header": make(
        '{"b":' + entry(offsets="[8,16]") + "," + A + "}", 16),
    "any-dtype-order": make('{"b":' + entry("U8", "[4]", "[0,4]") + ',"a":' + entry(offsets="[4,12]") + "}", 12),
    "unaligned": make('{"b":' + entry("U8", "[1]", "[0,1]") + ',"a":' + entry(offsets="[1,9]") + "}", 9),
    "name-empty": make('{"":' + entry() + "}", 8),
    "name-dot": make('{".":' + entry() + "}", 8),
    "name-path": make('{"../../etc/passwd":' + entry() + "}", 8),
    "name-nul": make('{"a\\u0000b":' + entry() + "}", 8),
    "name-long": make('{"' + "n" * 65536 + '":' + entry() + "}", 8),
    "name-unicode": make('{"\u00e9\u4e2d\U0001f600":' + entry() + "}", 8),
    "empty-tensors": make(
        '{"a":' + entry(shape="[0]", offsets="[0,0]") + ',"b":' + entry(shape="[3,0]", offsets="[0,0]")
        + ',"c":' + entry() + ',"d":' + entry(shape="[0]", offsets="[8,8]") + "}", 8),
    "zero-before-overflow": one(0, shape=f"[0,{2**63},4]", offsets="[0,0]"),
    "zero-and-largest": one(0, shape=f"[{MAX_U64},0]", offsets="[0,0]"),
    "rank-1001": one(4, shape="[" + ",".join(["1"] * 1001) + "]", offsets="[0,4]"),
    "scalar": one(4, shape="[]", offsets="[0,4]"),
    "f4-even": one(1, dtype="F4", shape="[2,1]", offsets="[0,1]"),
    "f6-four": one(3, dtype="F6_E2M3", shape="[4]", offsets="[0,3]"),
    "bool-other-bytes": one(b"\x02\xff", dtype="BOOL", shape="[2]", offsets="[0,2]"),
    "space-everywhere": make('{ "a" : { "dtype" : "F32" , "shape" : [ 2 ] , "data_offsets" : [ 0 , 8 ] } }', 8),
    "float-1.7976931348623157e308": ignored("1.7976931348623157e308"),
    "float-long-negative-exponent": ignored("1" * 400 + "e-390"),
    "float-ignored-digits": ignored("0." + "0" * 400 + "1e700"),
}
for _dtype in DTYPES:
    _bits = BITS[_dtype]
    ACCEPTED[f"dtype-{_dtype}"] = one(_bits, dtype=_dtype, shape="[8]", offsets=f"[0,{_bits}]")

# What is refused, some of it against expectation.
REJECTED = {
    "empty-file": b"",
    "seven-bytes": b"\2\0\0\0\0\0\0",
    "no-header": make(""),
    "only-spaces": make("        "),
    "header-too-large": make("{}", n=MAX_HEADER + 1),
    "header-largest-but-cut": make("{}", n=MAX_HEADER),
    "header-cut": make("{" + A, n=60),
    "not-utf8": make(b'{"\xff":' + entry().encode() + b"}", 8),
    "utf8-overlong": make(b'{"\xc0\xaf":' + entry().encode() + b"}", 8),
    "utf8-surrogate": make('{"\ud800":' + entry() + "}", 8),
    "utf8-cut-at-end": make(b"{}\xe2\x82"),
    "byte-order-mark": make("\ufeff{}"),
    "padding-nul": make("{}\0\0\0\0\0\0"),
    "padding-form-feed": make("{}\f"),
    "padding-no-break-space": make("{}\u00a0"),
    "garbage-behind": make("{}{}"),
    "top-array": make("[]"),
    "top-null": make("null"),
    "top-number": make("1 "),
    "top-string": make('"x"'),
    "top-comma": make("{" + A + ",}", 8),
    "top-number-member": make('{"version":1}'),
    "top-empty-entry": make('{"x":{}}'),
    "top-null-member": make('{"x":null}'),
    "metadata-twice": make('{"__metadata__":{"a":"b"},"__metadata__":{"a":"b"}}'),
    "metadata-null-twice": make('{"__metadata__":null,"__metadata__":null}'),
    "metadata-twice-escaped": make('{"__metadata__":{},"\\u005f_metadata__":{}}'),
    "metadata-array": make('{"__metadata__":[]}'),
    "metadata-string": make('{"__metadata__":"x"}'),
    "metadata-number-value": make('{"__metadata__":{"a":1}}'),
    "metadata-null-value": make('{"__metadata__":{"a":null}}'),
    "metadata-nested-value": make('{"__metadata__":{"a":{}}}'),
    "duplicate-key": one(more=',"dtype":"F32"'),
    "duplicate-key-shape": one(more=',"shape":[2]'),
    "duplicate-key-escaped": one(more=',"data_offset\\u0073":[0,8]'),
    "duplicate-name-first-malformed": make('{"a":{"dtype":"F32"},' + A + "}", 8),
    "no-dtype": make('{"a":{"shape":[2],"data_offsets":[0,8]}}', 8),
    "no-shape": make('{"a":{"dtype":"F32","data_offsets":[0,8]}}', 8),
    "no-offsets": make('{"a":{"dtype":"F32","shape":[2]}}', 8),
    "entry-array-short": make('{"a":["F32",[2]]}', 8),
    "entry-array-long": make('{"a":["F32",[2],[0,8],0]}', 8),
    "entry-array-order": make('{"a":[[2],"F32",[0,8]]}', 8),
    "entry-string": make('{"a":"F32"}'),
    "dtype-unknown": one(dtype="F33"),
    "dtype-lower": one(dtype="f32"),
    "dtype-empty": one(dtype=""),
    "dtype-null": make('{"a":{"dtype":null,"shape":[2],"data_offsets":[0,8]}}', 8),
    "dtype-number": make('{"a":{"dtype":17,"shape":[2],"data_offsets":[0,8]}}', 8),
    "dtype-array": make('{"a":{"dtype":["F32"],"shape":[2],"data_offsets":[0,8]}}', 8),
    "shape-null": one(shape="null"),
    "shape-object": one(shape="{}"),
    "shape-string": one(shape='"2"'),
    "shape-nested": one(shape="[[2]]"),
    "shape-trailing-comma": one(shape="[2,]"),
    "shape-leading-comma": one(shape="[,2]"),
    "offsets-one": one(offsets="[8]"),
    "offsets-three": one(offsets="[0,8,8]"),
    "offsets-none": one(offsets="[]"),
    "offsets-object": one(offsets='{"0":0,"1":8}'),
    "offsets-float": one(offsets="[0,8.0]"),
    "offsets-minus-zero": one(offsets="[-0,8]"),
    "zero-after-overflow": one(0, shape=f"[{2**63},4,0]", offsets="[0,0]"),
    "bits-overflow": one(0, shape=f"[{2**61}]", offsets="[0,8]"),
    "overflow-u64": one(0, shape=f"[{2**64}]", offsets="[0,0]"),
    "f4-odd": one(1, dtype="F4", shape="[1]", offsets="[0,1]"),
    "f4-odd-floor": one(1, dtype="F4", shape="[3]", offsets="[0,1]"),
    "f6-two": one(2, dtype="F6_E3M2", shape="[2]", offsets="[0,2]"),
    "size-mismatch": one(shape="[3]"),
    "hole-at-0": one(16, offsets="[8,16]"),
    "hole-between": make('{"a":' + entry() + ',"b":' + entry(offsets="[9,17]") + "}", 17),
    "overlap": make('{"a":' + entry() + ',"b":' + entry(offsets="[4,12]") + "}", 12),
    "same-bytes": make('{"a":' + entry() + ',"b":' + entry() + "}", 8),
    "backwards-at-0": one(offsets="[8,0]"),
    "backwards": make('{"a":' + entry() + ',"b":' + entry(shape="[1]", offsets="[8,4]") + "}", 8),
    "empty-inside": make('{"a":' + entry() + ',"b":' + entry(shape="[0]", offsets="[4,4]") + "}", 8),
    "empty-past-the-end": make('{"a":' + entry() + ',"b":' + entry(shape="[0]", offsets="[9,9]") + "}", 8),
    "data-short": one(7),
    "data-long": one(b"\0" * 8 + b"\n"),
    "data-without-tensors": make("{}", 1),
    "data-nearly-all-missing": one(0, dtype="U8", shape=f"[{2**60}]", offsets=f"[0,{2**60}]"),
    "end-past-64-bits": make("{" + ",".join(
        f'"{i}":' + entry("U8", f"[{2**60 - (i == 15)}]", f"[{i << 60},{((i + 1) << 60) - (i == 15)}]")
        for i in range(16)) + "}"),
    "lone-high-surrogate": ignored('"\\ud800"'),
    "lone-high-surrogate-letter": ignored('"\\ud800x"'),
    "lone-high-surrogate-escape": ignored('"\\ud800\\n"'),
    "lone-low-surrogate": ignored('"\\udc00"'),
    "two-high-surrogates": ignored('"\\ud800\\ud800"'),
    "escape-unknown": ignored('"\\x41"'),
    "escape-short": ignored('"\\u12"'),
    "escape-not-hex": ignored('"\\u12g4"'),
    "control-character": ignored('"\n"'),
    "nul-character": ignored('"\0"'),
    "unknown-key-126-arrays": ignored(nested(126)),
    "unknown-key-126-objects": ignored(nested(126, '{"k":', "}")),
    "unknown-key-mismatch": ignored("[}"),
    "unknown-key-cut-word": ignored("nul"),
    "unknown-key-NaN": ignored("NaN"),
    "unknown-key-single-quotes": ignored("'x'"),
    "unknown-key-comment": ignored("1/**/"),
}
for _number in ("2.0", "2e0", "-0", "-2", str(2**64), "02", "+2", "2.", ".2", "2e", "2e+", "0x2", "1e999", "-"):
    REJECTED[f"shape-of-{_number}"] = one(shape=f"[{_number}]")
for _number in ("1e999", "-1e999", "1e309", "1.7976931348623159e308", "17976931348623159e292", "2" + "0" * 308,
                "1e2147483648", "1e99999999999999999999", "18446744073709551616e289", "01", "-01", "1.e5", "--1"):
    REJECTED[f"unknown-key-of-{_number[:32]}"] = ignored(_number)

# lib/safetensors.h's reason for each of them.
REASONS = {
    "header-too-small": ["empty-file", "seven-bytes"],
    "header-too-large": ["header-too-large"],
    "header-cut": ["header-largest-but-cut", "header-cut"],
    "header-not-utf8": ["not-utf8", "utf8-overlong", "utf8-surrogate", "utf8-cut-at-end"],
    "header-not-object": ["top-array", "top-null", "top-number", "top-string"],
    "metadata-invalid": [n for n in REJECTED if n.startswith("metadata-")],
    "entry-invalid": [
        "top-number-member", "top-empty-entry", "top-null-member", "duplicate-name-first-malformed", "no-dtype", "no-shape",
        "no-offsets", "entry-array-short", "entry-array-long", "entry-array-order", "entry-string", "dtype-null",
        "dtype-number", "dtype-array"],
    "entry-duplicate-key": ["duplicate-key", "duplicate-key-shape", "duplicate-key-escaped"],
    "dtype-unknown": ["dtype-unknown", "dtype-lower", "dtype-empty"],
    "shape-invalid": [
        "shape-null", "shape-object", "shape-string", "shape-nested", "overflow-u64", "shape-of-2.0", "shape-of-2e0",
        "shape-of--0", "shape-of--2", f"shape-of-{2**64}"],
    "offsets-invalid": [n for n in REJECTED if n.startswith("offsets-")],
    "offsets-gap": ["hole-at-0", "hole-between", "backwards-at-0", "empty-past-the-end"],
    "offsets-overlap": ["overlap", "same-bytes", "empty-inside", "backwards"],
    "shape-overflow": ["zero-after-overflow", "bits-overflow", "end-past-64-bits"],
    "shape-misaligned": ["f4-odd", "f4-odd-floor", "f6-two"],
    "shape-mismatch": ["size-mismatch"],
    "data-short": ["data-short", "data-nearly-all-missing"],
    "data-long": ["data-long", "data-without-tensors"],
}
REASON_OF = {name: reason for reason, names in REASONS.items() for name in names}
for _name in REJECTED:
    REASON_OF.setdefault(_name, "header-not-json")
INCOMPLETE = {"header-too-small", "header-cut", "data-short"}


# ---- random JSON ----

def digits(rng, most):
    return "".join(rng.choice("0123456789") for _ in range(rng.randint(1, most)))


def number(rng):
    """A number, near the limits more often than not; sometimes not one at all."""
    whole = rng.choice(["0", "1", "9", "17976931348623157", "18446744073709551615", "18446744073709551616",
                        "1844674407370955161", "9223372036854775808", "1" + "0" * rng.randint(290, 320),
                        str(rng.randint(1, 9)) + digits(rng, 30), digits(rng, 5), ""])
    text = rng.choice(["", "", "", "-"]) + whole
    if rng.random() < 0.4:
        text += "." + rng.choice(["", "0", "0" * rng.randint(1, 330), digits(rng, 40), "7976931348623157", "7976931348623159"])
    if rng.random() < 0.5:
        exponent = rng.choice([308, 309, 290, 2147483647, 2147483648, 330, 0, rng.randint(0, 400), 10**12])
        exponent += rng.randint(-25, 5) if exponent > 30 else 0
        text += rng.choice("eE") + rng.choice(["", "+", "-"]) + rng.choice(["", "0", "000"]) + str(exponent)
        if rng.random() < 0.05:
            text = text.rstrip("0123456789")
    return text


def string_body(rng, strange=0.1):
    parts = []
    for _ in range(rng.randint(0, 6)):
        if rng.random() < strange:
            parts.append(rng.choice(["\\ud800", "\\udc00", "\\uD83D\\uDE00", "\\ud83d\\u0041", "\\ud83d\\n", "\\", "\\u00", "\\q",
                                     "\n", "\t", "\x7f", "\x1f", "\0", '"', "\\u00zz", "\\uDBFF\\uDFFF", "\\ud800\\udbff"]))
        else:
            parts.append(rng.choice(["a", "weight", ".", "/", "\u00e9", "\u4e2d", "\U0001f600", "\\n", "\\\"", "\\\\", "\\/", "\\b",
                                     "\\u0000", "\\u00e9", "\\u4E2D", "\\u0061", " "]))
    return "".join(parts)


def space(rng):
    return rng.choice(["", "", "", "", " ", "\n", "\t", "\r", "  ", "\f" if rng.random() < 0.05 else ""])


def value(rng, depth=0):
    kind = rng.randrange(9)
    if depth > 4:
        kind %= 5
    if kind <= 1:
        return number(rng)
    if kind <= 3:
        return '"' + string_body(rng) + '"'
    if kind == 4:
        return rng.choice(["null", "true", "false", "true", "null", "nul", "True", "tru e"] if rng.random() < 0.3 else ["null", "true"])
    items = [value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    if kind <= 6:
        return "[" + space(rng) + ("," + space(rng)).join(items) + space(rng) + "]"
    return "{" + ("," + space(rng)).join(f'"{string_body(rng, 0.02)}"{space(rng)}:{space(rng)}{i}' for i in items) + "}"


def random_value_file(rng):
    choice = rng.random()
    if choice < 0.5:
        return ignored(number(rng))
    if choice < 0.7:
        return ignored('"' + string_body(rng, 0.2) + '"')
    if choice < 0.75:
        levels = rng.randint(120, 130)
        openings = [rng.choice(["[", '{"k":', "[1,"]) for _ in range(levels)]
        closings = ["}" if o[0] == "{" else "]" for o in reversed(openings)]
        return ignored("".join(openings) + "0" + "".join(closings))
    return ignored(value(rng))


# ---- random headers ----

def escaped(rng, text, chance):
    """The same string, some of its characters as escapes."""
    return "".join(f"\\u{ord(c):04x}" if rng.random() < chance and ord(c) < 0xd800 and c != "\\" else c for c in text)


class RandomHeader:
    """Tensors that lie one after the other, and then `twists` of that."""

    def __init__(self, rng, twists):
        self.rng = rng
        self.twists = twists
        self.end = 0

    def odd(self, chance=0.05):
        return self.rng.random() < chance * self.twists

    def shape(self, dtype):
        dims = [self.rng.choice([0, 1, 1, 2, 3, 4, 5, 8]) for _ in range(self.rng.choice([0, 1, 1, 2, 2, 3]))]
        if BITS[dtype] % 8 and not self.odd(0.3):
            dims.append(4)
        return dims

    def number(self, n):
        if not self.odd(0.02):
            return str(n)
        return self.rng.choice([f"{n}.0", f"{n}e0", f"-{n}", f"0{n}", str(n + 1), str(n + 2**64), "null", f'"{n}"', f"{n}E1",
                                str(MAX_U64), "-0", str(2**63), number(self.rng)])

    def offsets(self, begin, end):
        if self.odd():
            begin += self.rng.choice([-1, 1, 8, 2**63, -begin])
        if self.odd():
            end += self.rng.choice([-1, 1, 8, 2**63, -end])
        items = [self.number(max(begin, 0)), self.number(max(end, 0))]
        if self.odd(0.02):
            items = self.rng.choice([items[:1], items + ["0"], [], items[::-1]])
        return "[" + self.joined(items) + "]"

    def joined(self, items):
        text = ("," + space(self.rng)).join(items) if self.odd(1) else ",".join(items)
        return text + ("," if self.odd(0.005) else "")

    def dtype(self, dtype):
        if self.odd(0.03):
            dtype = self.rng.choice(["F31", "f32", "", "F32 ", "BF16", "U128", "F8"])
        text = '"' + escaped(self.rng, dtype, 0.3 if self.odd(0.2) else 0) + '"'
        if self.odd():
            inner = self.rng.choice(["null", "null", "null", "{}", "[]", "0", "true", '""'])
            text = self.rng.choice([f"{{{text}:{inner}}}", f"{{{text}:null}}", f"[{text}]", "{}", f"{{{text}:null,{text}:null}}"])
        return text

    def fields(self):
        dtype = self.rng.choice(DTYPES)
        dims = self.shape(dtype)
        count = 1
        for d in dims:
            count *= d
        begin, self.end = self.end, self.end + count * BITS[dtype] // 8
        if self.odd(0.03):
            dims = self.rng.choice([dims + [2], [MAX_U64, 2], dims[1:], [0] + dims, [2**63, 4, 0], [0, 2**63, 4], [2**61]])
        shape = "[" + self.joined([self.number(d) for d in dims]) + "]"
        return [("dtype", self.dtype(dtype)), ("shape", shape), ("data_offsets", self.offsets(begin, self.end))]

    def entry(self):
        rng = self.rng
        fields = self.fields()
        if self.odd(0.08):
            array = [v for _, v in fields]
            if self.odd(0.2):
                array = rng.choice([array[:2], array + ["0"], array[::-1]])
            return "[" + self.joined(array) + "]"
        if self.odd(0.3):
            rng.shuffle(fields)
        if self.odd(0.03):
            del fields[rng.randrange(3)]
        if self.odd(0.03):
            fields.append(rng.choice(fields))
        while self.odd(0.15):
            fields.insert(rng.randint(0, len(fields)), (string_body(rng, 0.02), value(rng, 2)))
        members = [f'"{escaped(rng, k, 0.2) if self.odd(0.1) else k}":{v}' for k, v in fields]
        return "{" + self.joined(members) + "}"

    def metadata(self):
        rng = self.rng
        if self.odd(0.1):
            return rng.choice(["null", "{}", "[]", '"x"', "1", '{"a":null}', '{"a":1}', '{"a":{}}', "true", '{"a":"b","a":"c"}', "{,}"])
        strange = 0.02 * self.twists
        pairs = [f'"{string_body(rng, strange)}":"{string_body(rng, strange)}"' for _ in range(rng.randint(0, 3))]
        return "{" + self.joined(pairs) + "}"

    def name(self, i):
        rng = self.rng
        if self.odd(0.1):
            return rng.choice(["", "t0", "\\u0074\\u0030", "..", "a/b", "\\u0000", "\u00e9", "\\u00e9", "__metadata", "dtype"])
        return f"t{i}" if rng.random() < 0.7 else f"t{i}." + string_body(rng, 0.02 * self.twists)

    def members(self):
        rng = self.rng
        members = [f'"{self.name(i)}"{":"}{self.entry()}' for i in range(rng.choice([0, 1, 1, 2, 3, 5]))]
        if self.odd(0.3):
            rng.shuffle(members)
        while rng.random() < (0.03 if "__metadata__" in str(members) else 0.4):
            key = escaped(rng, "__metadata__", 0.2) if self.odd(0.2) else "__metadata__"
            members.insert(rng.choice([0, 0, len(members)]), f'"{key}":{self.metadata()}')
        if self.odd(0.03):
            members.append(rng.choice(['"version":1', '"x":{}', '"x":null', '"x":[]', "1", '"x"', value(rng)]))
        return members

    def text(self):
        rng = self.rng
        text = "{" + self.joined(self.members()) + "}"
        if self.odd(0.1):
            text = rng.choice([" ", "\n", "\ufeff", "\0", "\t\r"]) + text
        if self.odd(0.1):
            text += rng.choice([" ", "\n", "\0", "\t\r", "\f", "x", "}", "{}", "\u00a0"])
        elif rng.random() < 0.7:
            text += " " * (-len(text.encode("utf-8", "surrogatepass")) % 8)
        return text

    def file(self):
        rng = self.rng
        text = self.text().encode("utf-8", "surrogatepass")
        length = self.end + (rng.choice([-1, 1, 8, -self.end]) if self.odd() else 0)
        n = len(text) + (rng.choice([-1, 1, 8, 2**32, MAX_HEADER, -len(text)]) if self.odd(0.03) else 0)
        return make(text, rng.randbytes(max(length, 0)), max(n, 0))


def random_file(rng, twists=None):
    """A file that is valid about as often as not."""
    return RandomHeader(rng, rng.choice([0, 0.3, 1, 2]) if twists is None else twists).file()


# ---- mutations ----

TOKENS = [b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"null", b"true", b"0", b"1", b"-", b".", b"e", b"E5", b" ", b"\n",
          b"\0", b"\x80", b"\xff", b"\xc3\xa9", b"\xe2\x82", b"\\u0041", b"\\ud800", b'"dtype":"F32"', b'"x":1,', b"99999999999999999999",
          b'"__metadata__":{},', b"\xf0\x9f\x98\x80", b"\xed\xa0\x80", b"\x1f", b"\x7f"]


def mutate(rng, text):
    at = rng.randrange(len(text) + 1)
    choice = rng.randrange(6)
    if choice == 0:
        return text[:at] + rng.choice(TOKENS) + text[at:]
    if choice == 1:
        return text[:at] + text[at + rng.randint(1, 4) :]
    if choice == 2:
        return text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :]
    if choice == 3:
        other = rng.randrange(len(text) + 1)
        return text[:at] + text[other : other + rng.randint(1, 30)] + text[at:]
    if choice == 4:
        return text[:at] + rng.choice(TOKENS) + text[at + 1 :]
    return text[:at] + bytes([(text[at] if at < len(text) else 32) ^ 1 << rng.randrange(8)]) + text[at + 1 :]


def mutated_file(rng):
    """Mostly the header is mutated, and N made right again."""
    if rng.random() < 0.5:
        data = random_file(rng, twists=rng.choice([0, 0.5]))
    else:
        data = rng.choice(list(ACCEPTED.values())[:40])
    if len(data) > 5000:
        data = ACCEPTED["one-tensor"]
    n = int.from_bytes(data[:8], "little")
    if rng.random() < 0.15:
        return mutate(rng, data)
    text = data[8 : 8 + n]
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        text = mutate(rng, text)
    return make(text, data[8 + n :])


# ---- files by the writer of safetensors itself ----

WRITER_NAMES = {
    "BOOL": "bool", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", "U8": "uint8", "I8": "int8", "I16": "int16",
    "U16": "uint16", "F16": "float16", "BF16": "bfloat16", "I32": "int32", "U32": "uint32", "F32": "float32",
    "C64": "complex64", "F64": "float64", "I64": "int64", "U64": "uint64",
}


def written_name(rng):
    return json.loads('"' + string_body(rng, 0) + '"') + rng.choice(["", "\x01", "\x7f", "\x1f\b\f", str(rng.randrange(100))])


def written_file(rng):
    import safetensors

    specs, kept = {}, []
    for _ in range(rng.choice([0, 1, 3, 6])):
        dtype = rng.choice(list(WRITER_NAMES))
        dims = [rng.choice([0, 1, 2, 3]) for _ in range(rng.choice([0, 1, 2, 3]))]
        size = BITS[dtype] // 8
        for d in dims:
            size *= d
        buffer = ctypes.create_string_buffer(rng.randbytes(size), size + 1)
        kept.append(buffer)
        specs[written_name(rng)] = safetensors.TensorSpec(
            dtype=WRITER_NAMES[dtype], shape=dims, data_ptr=ctypes.addressof(buffer), data_len=size)
    metadata = {written_name(rng): written_name(rng) for _ in range(rng.choice([1, 2, 4]))}
    return bytes(safetensors.serialize(specs, metadata if rng.random() < 0.5 else None))
