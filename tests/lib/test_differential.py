"""lib/safetensors against Python's safetensors, on the same bytes.

verdict_cli (tests/unit/verdict_cli.c) says valid exactly where
safetensors.deserialize accepts. Environment:

    WEIGHTFS_VERDICT      the built helper; else tests/verdict_cli in WEIGHTFS_BUILD, else in build/
    WEIGHTFS_DIFF_COUNT   random files of each kind (default 3000)
    WEIGHTFS_DIFF_SEED    seed of the random files (default 1)
    WEIGHTFS_DIFF_SEEDS   seeds of the long form, comma-separated (default 2)
    WEIGHTFS_DIFF_LONG    files of each of its four kinds for each seed (default 25000: 100,000 headers)
"""

import os
import pathlib
import random
import runpy
import subprocess

import pytest

safetensors = pytest.importorskip("safetensors")

import header_cases

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(os.environ.get("WEIGHTFS_BUILD", ROOT / "build"))
CORPUS = ROOT / "tests/corpus"
COUNT = int(os.environ.get("WEIGHTFS_DIFF_COUNT", "3000"))
SEED = os.environ.get("WEIGHTFS_DIFF_SEED", "1")
SEEDS = os.environ.get("WEIGHTFS_DIFF_SEEDS", "2").split(",")
LONG_COUNT = int(os.environ.get("WEIGHTFS_DIFF_LONG", "25000"))
BATCH = 1000


@pytest.fixture(scope="session")
def verdict_cli():
    path = pathlib.Path(os.environ.get("WEIGHTFS_VERDICT", BUILD / "tests/verdict_cli"))
    if not os.access(path, os.X_OK):
        pytest.fail(f"no helper at {path}: run make unit-programs, or set WEIGHTFS_VERDICT")
    return path.resolve()


def loads(data):
    """What Python's safetensors says."""
    try:
        safetensors.deserialize(data)
    except safetensors.SafetensorError:
        return False
    return True


class Verdicts:
    """Asks the helper about many files at a time."""

    def __init__(self, helper, directory):
        self.helper = helper
        self.directory = directory

    def ask(self, files):
        """(verdict, reason, offset, warnings, rebuilt) of each."""
        answers = []
        for start in range(0, len(files), BATCH):
            answers += self._ask_batch(files[start : start + BATCH])
        return answers

    def _ask_batch(self, files):
        names = []
        for i, data in enumerate(files):
            path = self.directory / f"{i}.safetensors"
            path.write_bytes(data)
            names.append(str(path))
        run = subprocess.run([self.helper], input="\n".join(names) + "\n", text=True, capture_output=True)
        assert run.returncode == 0, run.stderr
        lines = run.stdout.splitlines()
        assert [line.split("\t")[1] for line in lines] == names
        return [line.split("\t")[0].split(" ") for line in lines]


@pytest.fixture
def verdicts(verdict_cli, tmp_path):
    return Verdicts(verdict_cli, tmp_path)


def shown(data):
    return data if len(data) < 2000 else data[:1000] + b" ... " + data[-1000:]


def compare(verdicts, files):
    """Fails with the first file that the two do not agree on."""
    answers = verdicts.ask(files)
    differ = [(a, f) for a, f in zip(answers, files) if (a[0] == "valid") != loads(f)]
    if differ:
        answer, data = min(differ, key=lambda d: len(d[1]))
        pytest.fail(f"{len(differ)} of {len(files)} differ; the shortest: {' '.join(answer)}\n{shown(data)!r}")
    return answers


def random_files(kind, make, seed=SEED, count=COUNT):
    rng = random.Random(f"{kind} {seed}")
    return (make(rng) for _ in range(count))


def batches(items):
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


@pytest.mark.parametrize("name", header_cases.ACCEPTED)
def test_accepted_by_rule(verdicts, name):
    data = header_cases.ACCEPTED[name]
    assert loads(data)
    answer = verdicts.ask([data])[0]
    assert answer[0] == "valid", answer


@pytest.mark.parametrize("name", header_cases.REJECTED)
def test_rejected_by_rule(verdicts, name):
    data = header_cases.REJECTED[name]
    assert not loads(data)
    reason = header_cases.REASON_OF[name]
    answer = verdicts.ask([data])[0]
    assert answer[:2] == ["incomplete" if reason in header_cases.INCOMPLETE else "wrong", reason]


def test_corpus_is_what_its_script_makes():
    make_corpus = runpy.run_path(str(CORPUS / "make_corpus.py"))
    made = make_corpus["corpus"]()
    present = {str(p.relative_to(CORPUS)): p.read_bytes() for p in CORPUS.glob("*/*.safetensors")}
    assert present == made, "run tests/corpus/make_corpus.py"


def test_json_values(verdicts):
    """Numbers, strings and nesting, each in a key that safetensors ignores."""
    accepted = 0
    for batch in batches(random_files("values", header_cases.random_value_file)):
        accepted += sum(a[0] == "valid" for a in compare(verdicts, batch))
    assert COUNT < 100 or 0 < accepted < COUNT


def test_random_headers(verdicts):
    accepted = 0
    for batch in batches(random_files("headers", header_cases.random_file)):
        accepted += sum(a[0] == "valid" for a in compare(verdicts, batch))
    assert COUNT < 100 or COUNT // 20 < accepted < COUNT - COUNT // 20


def test_mutated_files(verdicts):
    for batch in batches(random_files("mutations", header_cases.mutated_file)):
        compare(verdicts, batch)


def test_beginning_of_a_valid_file_is_incomplete(verdicts):
    """What is cut off could come later, so no beginning of what loads is wrong."""

    def cut(rng):
        data = header_cases.random_file(rng, twists=0.3)
        return data[: rng.randrange(len(data))] if loads(data) else None

    for batch in batches(f for f in random_files("cuts", cut) if f is not None):
        for answer, data in zip(verdicts.ask(batch), batch):
            assert answer[0] == "incomplete", (answer, shown(data))


def test_builder_writes_what_safetensors_writes(verdicts):
    """Parsed and built anew, a file of safetensors' own writer is the same bytes."""
    for batch in batches(random_files("written", header_cases.written_file)):
        for answer, data in zip(compare(verdicts, batch), batch):
            assert answer[0] == "valid" and answer[3:] == ["0", "same"], (answer, shown(data))


@pytest.mark.endurance
@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", ["random_value_file", "random_file", "mutated_file", "written_file"])
@pytest.mark.parametrize("seed", SEEDS)
def test_many(verdicts, seed, kind):
    """100,000 headers and no other verdict."""
    asked = 0
    for batch in batches(random_files(kind, getattr(header_cases, kind), seed, LONG_COUNT)):
        asked += len(compare(verdicts, batch))
    assert asked == LONG_COUNT
