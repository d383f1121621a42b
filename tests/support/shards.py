"""Safetensors files, right ones and one for each way to be wrong."""

import json
import struct
from dataclasses import dataclass

from support.files import random_bytes

WIDTHS = {"U8": 1, "I8": 1, "F16": 2, "BF16": 2, "F32": 4, "F64": 8}


def raw(text, data=b"", length=None):
    """A file of header text `text` as it stands, then `data`; N is right unless given."""
    text = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin, end, shape=None, dtype="F32"):
    shape = [(end - begin) // WIDTHS.get(dtype, 1)] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def shard(tensors, metadata=True, pad=True):
    """A valid file of {name: bytes} as U8 tensors, in the order given."""
    header, at = {}, 0
    if metadata:
        header["__metadata__"] = {"format": "pt"}
    for name, data in tensors.items():
        header[name] = entry(at, at + len(data), dtype="U8")
        at += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    if pad:
        text += b" " * (-len(text) % 8)
    return raw(text, b"".join(tensors.values()))


def boundaries(content):
    """Every offset where a piece of a valid file begins or ends."""
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:8 + length])
    base = 8 + length
    found = {0, base, len(content)}
    for name, tensor in header.items():
        if name != "__metadata__":
            found.update(base + offset for offset in tensor["data_offsets"])
    return sorted(found)


def valid(seed=1, size=1000):
    """A small valid file; another seed is another content."""
    return shard({"a": random_bytes(seed, size), "b": random_bytes(seed + 1000, 3 * size + 1)})


@dataclass(frozen=True)
class Case:
    """A file's content, what the gate must say of it, and the reason it must give."""

    name: str
    content: bytes
    verdict: str
    reason: str | None = None


def _header(value):
    return json.dumps(value)


def _wrong(name, content, reason):
    return Case(name, content, "wrong", reason)


def _incomplete(name, content, reason):
    return Case(name, content, "incomplete", reason)


_ONE = _header({"a": entry(0, 8)})
_EIGHT = b"\1\2\3\4\5\6\7\10"

WRONG = [
    _wrong("length-over-100-mb", raw(_ONE, _EIGHT, length=100_000_001), "header-too-large"),
    _wrong("length-all-ones", b"\xff" * 64, "header-too-large"),
    _wrong("length-beyond-file-and-no-json", raw("no json at all", length=5000), "header-not-json"),
    _wrong("json-broken", raw('{"a":{"dtype":"F32","shape":[2],', _EIGHT), "header-not-json"),
    _wrong("json-list", raw("[]"), "header-not-object"),
    _wrong("not-utf8", raw(b'{"\xff\xfe":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', _EIGHT),
           "header-not-utf8"),
    _wrong("metadata-number", raw('{"__metadata__":{"step":3}}'), "metadata-invalid"),
    _wrong("entry-without-dtype", raw('{"a":{"shape":[2],"data_offsets":[0,8]}}', _EIGHT), "entry-invalid"),
    _wrong("duplicate-key-in-entry",
           raw('{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', _EIGHT),
           "entry-duplicate-key"),
    _wrong("dtype-unknown", raw(_header({"a": entry(0, 8, [2], "F31")}), _EIGHT), "dtype-unknown"),
    _wrong("shape-negative", raw(_header({"a": entry(0, 8, [-2])}), _EIGHT), "shape-invalid"),
    _wrong("shape-mismatch", raw(_header({"a": entry(0, 8, [3])}), _EIGHT), "shape-mismatch"),
    _wrong("shape-overflow", raw(_header({"a": entry(0, 8, [2**63, 4])}), _EIGHT), "shape-overflow"),
    _wrong("offsets-one", raw('{"a":{"dtype":"F32","shape":[2],"data_offsets":[8]}}', _EIGHT),
           "offsets-invalid"),
    _wrong("overlap", raw(_header({"a": entry(0, 8), "b": entry(4, 12)}), _EIGHT + b"1234"),
           "offsets-overlap"),
    _wrong("gap", raw(_header({"a": entry(0, 4), "b": entry(8, 12)}), _EIGHT + b"1234"), "offsets-gap"),
    _wrong("hole-at-the-start", raw(_header({"a": entry(4, 8)}), _EIGHT), "offsets-gap"),
    _wrong("long", raw(_ONE, _EIGHT + b"\n"), "data-long"),
]

INCOMPLETE = [
    _incomplete("three-bytes", b"\x10\0\0", "header-too-small"),
    _incomplete("length-beyond-file", raw(_ONE[:20], length=len(_ONE)), "header-cut"),
    _incomplete("header-only", raw(_ONE), "data-short"),
    _incomplete("short", raw(_ONE, _EIGHT[:5]), "data-short"),
]

LFS_POINTER = (b"version https://git-lfs.github.com/spec/v1\n"
               b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
               b"size 12345\n")

OPAQUE = [
    Case("empty", b"", "opaque"),
    Case("git-lfs-pointer", LFS_POINTER, "opaque"),
]

VALID = [
    Case("plain", valid(), "valid"),
    Case("no-tensors", raw("{}      "), "valid"),
    Case("no-padding", shard({"a": _EIGHT + b"9"}, pad=False), "valid"),
]

WARNED = [
    Case("leading-space", raw(" " + _ONE, _EIGHT), "valid", "warning"),
    Case("padded-by-newline", raw(_ONE + "\n", _EIGHT), "valid", "warning"),
    Case("duplicate-tensor", raw('{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},' + _ONE[1:], _EIGHT),
         "valid", "warning"),
    Case("metadata-null", raw('{"__metadata__":null,' + _ONE[1:], _EIGHT), "valid", "warning"),
    Case("entry-as-array", raw('{"a":["F32",[2],[0,8]]}', _EIGHT), "valid", "warning"),
    Case("unknown-key", raw('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":[1]}}', _EIGHT),
         "valid", "warning"),
    Case("unaligned", raw(_header({"a": entry(0, 1, dtype="U8"), "b": entry(1, 9)}), _EIGHT + b"9"),
         "valid", "warning"),
]

REFUSED_AT_RENAME = WRONG + INCOMPLETE
ACCEPTED = VALID + WARNED + OPAQUE
EVERY = REFUSED_AT_RENAME + ACCEPTED


def case_id(case):
    return case.name
