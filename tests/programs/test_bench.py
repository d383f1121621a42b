"""The benchmark runs at tiny sizes, writes what it is to write, and leaves nothing behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from support.mounts import wait_for

ROOT = Path(__file__).resolve().parent.parent.parent
BENCH = ROOT / "tests" / "bench" / "bench.py"
WORKS = ["sequential read", "cp -r", "seal", "beside a seal", "large store", "cost against size"]
PLACES = {"disk", "bindfs", "weightfs", "bindfs ordinary", "weightfs ordinary"}

pytestmark = pytest.mark.root_only


@pytest.fixture
def base():
    """A directory that an ordinary user can enter, as pytest's own are not."""
    path = Path(tempfile.mkdtemp(prefix="weightfs-test-bench."))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def command(weightfs, fuse, other_user, base):
    """The benchmark's command line and environment, with `base` as its disk."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    if not (weightfs.parent / "bench-store").exists():
        pytest.skip("the benchmark's programs are not built (make bench-programs)")
    return {"args": [sys.executable, str(BENCH), "--quick", "--base", str(base)],
            "env": os.environ | {"WEIGHTFS_BUILD": str(weightfs.parent)}}


def assert_nothing_left(base):
    assert str(base) not in Path("/proc/self/mountinfo").read_text()
    assert list(base.iterdir()) == []


def run(command, base, *more, check=True):
    done = subprocess.run(command["args"] + list(more), env=command["env"], capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    assert_nothing_left(base)
    return done


@pytest.mark.long
def test_what_it_writes(command, base, tmp_path):
    docs, answer = tmp_path / "docs", tmp_path / "run.json"
    only = [word for work in WORKS for word in ("--only", work)]
    run(command, base, "--write", "--docs", str(docs), "--json", str(answer), *only, "--scale", "10", "100")
    found = json.loads(answer.read_text())["works"]
    assert set(found) == set(WORKS)
    assert set(found["sequential read"]["measures"]["sequential read, cold"]["samples"]) >= PLACES
    assert found["cp -r"]["measures"]["cp -r inside: growth"]["samples"]["weightfs"] == [0]
    assert not any(entry.get("problems") for entry in found.values())

    page = (docs / "performance.md").read_text()
    assert "### Against what is wanted" in page
    assert "| sequential read, cold | weightfs | ≥ 0.95 × disk |" in page
    assert str(base) not in page
    for name in ("ratios.png", "scale.png"):
        assert (docs / "performance" / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_results_are_merged(command, base, tmp_path):
    kept = tmp_path / "docs" / "performance" / "results.json"
    for only in ("stat small", "read small"):
        run(command, base, "--write", "--docs", str(tmp_path / "docs"), "--only", only)
    assert set(json.loads(kept.read_text())["works"]) == {"stat small files", "read small files"}


def test_the_tree_is_not_written_by_a_quick_run(command, base):
    done = run(command, base, "--write", check=False)
    assert done.returncode != 0 and "--docs" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop(command, base, number):
    """While something is mounted and a work is under way."""
    process = subprocess.Popen(command["args"], env=command["env"], stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: "sequential read" in process.stderr.readline(), 60, "the first work's beginning")
        assert str(base) in Path("/proc/self/mountinfo").read_text()
        process.send_signal(number)
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert_nothing_left(base)
