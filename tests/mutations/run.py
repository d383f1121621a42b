#!/usr/bin/env python3
"""Does the suite notice small wrong changes? Each of mutations.py is applied to a copy, built and tested.

    run.py [--list] [--check] [--concerned] [--only TEXT] [--from N] [--work DIR] [--json FILE]

--check only looks whether each applies. --concerned stops after the tests that a mutation names; otherwise those are
followed by the unit tests and by MORE. Exit status 1 if fewer than 96 of 100 were caught.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

from mutations import MUTATIONS

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MORE = ["mount/test_bytes.py", "mount/test_gate.py", "mount/test_random.py", "mount/test_model_based.py",
        "mount/test_passthrough.py", "crash/test_kill.py", "mount/test_tensor_writes.py"]
ENOUGH = 0.96
UNIT_SECONDS, PYTEST_SECONDS = 300, 600


def problem_of(mutation):
    """Why it does not apply, or None."""
    found = (ROOT / mutation.file).read_text().count(mutation.old)
    if found != 1:
        return f"{mutation.file} has its text {found} times, not once"
    return "it changes nothing" if mutation.old == mutation.new else None


class Copy:
    """The tree in a directory of its own, with its own build."""

    def __init__(self, work):
        self.root, self.build = work / "tree", work / "build"
        files = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                               capture_output=True, check=True).stdout.decode().split("\0")
        for name in filter(None, files):
            if (ROOT / name).is_file():
                target = self.root / name
                target.parent.mkdir(parents=True, exist_ok=True)
                # Only what changed, so that the next run builds only that.
                if not target.exists() or target.read_bytes() != (ROOT / name).read_bytes():
                    shutil.copyfile(ROOT / name, target)
        self.pytest = work / "pytest"
        self.log = work / "log"

    def make(self, tests=None):
        """What these tests need, or everything."""
        targets = ["all", "unit-programs"]
        if tests:
            units = [f"{self.build}/tests/{test.removeprefix('unit/')}" for test in tests if test.startswith("unit/")]
            targets = units if len(units) == len(tests) else [f"{self.build}/weightfs", *units]
        return self._run(["make", "-s", "-j2", f"BUILD={self.build}", *targets], 1800)

    def _run(self, command, seconds):
        with open(self.log, "w") as log:
            try:
                return subprocess.run(command, cwd=self.root, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                      env=self._environment(), timeout=seconds).returncode == 0
            except subprocess.TimeoutExpired:
                log.write("\nHANGS\n")
                return False

    def _environment(self):
        return {**os.environ, "WEIGHTFS": str(self.build / "weightfs"), "WEIGHTFS_BUILD": str(self.build),
                "PYTHONDONTWRITEBYTECODE": "1"}

    def passes(self, test):
        """A unit program, or what pytest calls by this name."""
        if test.startswith("unit/"):
            return self._run([self.build / "tests" / test.removeprefix("unit/")], UNIT_SECONDS)
        if not (self.root / "tests" / test.split("::")[0]).exists():
            raise SystemExit(f"there is no tests/{test}")
        return self._run([sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider",
                          f"--basetemp={self.pytest}", f"tests/{test}"], PYTEST_SECONDS)

    def failure(self):
        """The line of the log that says what failed."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines()
                 if line.startswith(("FAILED", "ERROR", "[  FAILED", "HANGS"))]
        return lines[0][:150] if lines else "ended with an error"


def tests_of(mutation, copy, only_concerned):
    yield from mutation.tests
    if not only_concerned:
        yield from (f"unit/{path.name}" for path in sorted((copy.build / "tests").glob("test_*"))
                    if path.suffix == "" and f"unit/{path.name}" not in mutation.tests)
        yield from (test for test in MORE if test not in mutation.tests)


def judge(mutation, copy, only_concerned):
    """{"caught": …, "by": …, "how": …, "seconds": …}"""
    target = copy.root / mutation.file
    right = target.read_text()
    begin = time.monotonic()
    target.write_text(right.replace(mutation.old, mutation.new))
    try:
        if not copy.make(mutation.tests if only_concerned else None):
            raise SystemExit(f"{mutation.name}: does not build:\n{copy.log.read_text()[-2000:]}")
        for test in tests_of(mutation, copy, only_concerned):
            if not copy.passes(test):
                return {"caught": True, "by": test, "how": copy.failure(), "seconds": time.monotonic() - begin}
        return {"caught": False, "by": "", "how": "", "seconds": time.monotonic() - begin}
    finally:
        target.write_text(right)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("--list", "--check", "--concerned"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--from", type=int, default=1, dest="begin")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "build/mutants")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()

    wanted = [m for m in MUTATIONS[args.begin - 1:] if args.only in m.name]
    stale = [f"{m.name}: {problem_of(m)}" for m in MUTATIONS if problem_of(m)]
    if stale:
        raise SystemExit("these have to be brought in step with the code:\n  " + "\n  ".join(stale))
    if args.list or args.check:
        for number, m in enumerate(wanted, args.begin):
            print(f"{number:3} {m.file}: {m.name}")
        return 0
    if not wanted:
        raise SystemExit("there are none")
    copy = Copy(args.work.resolve())
    if not copy.make([test for m in wanted for test in m.tests] if args.concerned else None):
        raise SystemExit(f"the tree does not build:\n{copy.log.read_text()[-2000:]}")
    results = []
    for number, m in enumerate(wanted, args.begin):
        result = judge(m, copy, args.concerned)
        results.append({"name": m.name, "file": m.file, **result})
        print(f"{number:3} {'caught' if result['caught'] else 'NOT CAUGHT':10} {result['seconds']:4.0f} s  {m.file}: "
              f"{m.name}{'  (' + result['by'] + ': ' + result['how'] + ')' if result['caught'] else ''}", flush=True)
        if args.json:
            args.json.write_text(json.dumps(results, indent=1))
    caught = sum(result["caught"] for result in results)
    print(f"{caught} of {len(results)} were caught")
    return 0 if caught >= ENOUGH * len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
