#!/usr/bin/env python3
"""Writes valid/*.safetensors and invalid/REASON-*.safetensors beside itself.

One small file for each rule of the format, the same bytes every time. They
are in the tree so that tests in C, fuzzers and other readers need no Python;
the rules themselves are in tests/lib/header_cases.py.
"""

import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "lib"))

import header_cases

LARGEST = 4096


def corpus():
    """Name below this directory: bytes."""
    files = {f"valid/{name}.safetensors": data for name, data in header_cases.ACCEPTED.items()}
    for name, data in header_cases.REJECTED.items():
        files[f"invalid/{header_cases.REASON_OF[name]}-{name}.safetensors"] = data
    return {name: data for name, data in files.items() if len(data) <= LARGEST}


def main():
    files = corpus()
    for old in HERE.glob("*/*.safetensors"):
        if str(old.relative_to(HERE)) not in files:
            old.unlink()
    for name, data in files.items():
        path = HERE / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    print(f"{len(files)} files")


if __name__ == "__main__":
    main()
