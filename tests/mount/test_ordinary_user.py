"""The suites once more as an ordinary user: the driver and the tests, by fusermount3 alone.

When the tests run as root, each file below is run by a pytest of its own that
has no privilege at all. When they run as an ordinary user, they all do so
anyway, and there is nothing to do here.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SUITES = ["mount/test_posix.py", "mount/test_random.py", "loaders/test_save_load.py", "mount/test_gate.py"]
FEWER = {"mount/test_posix.py": "not readdir and not many_open",
         "mount/test_gate.py": "written_by_cp or consolidation or exchange",
         "loaders/test_save_load.py": "llama and bf16 or trainer"}
LIMIT = 150


@pytest.fixture
def his_directory(other_user):
    """A directory of the other user's; pytest's own may be entered by root alone."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="weightfs-test-"))
    os.chown(path, other_user.pw_uid, other_user.pw_gid)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def as_user(user, command, **kwargs):
    """Run `command` with the user's ids, no other groups, and no capability."""
    identity = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups",
                "--inh-caps=-all"]
    return subprocess.run(identity + command, capture_output=True, text=True, **kwargs)


def needs_to_be_readable(user, *paths):
    for path in paths:
        if as_user(user, ["test", "-r", path]).returncode != 0:
            pytest.skip(f"{user.pw_name} may not read {path}: an ordinary user cannot run the tests there")


@pytest.mark.root_only
@pytest.mark.timeout(LIMIT + 20)
@pytest.mark.parametrize("suite", SUITES)
def test_as_ordinary_user(fuse, weightfs, other_user, his_directory, suite):
    """The whole file passes, and is not only skipped."""
    needs_to_be_readable(other_user, str(weightfs), sys.executable, str(ROOT / "tests" / suite))
    environment = dict(os.environ, WEIGHTFS=str(weightfs), HOME=str(his_directory),
                       TMPDIR=str(his_directory), WEIGHTFS_RANDOM_SEEDS="5", PYTHONDONTWRITEBYTECODE="1")
    done = as_user(other_user, [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
        f"--basetemp={his_directory / 'pytest'}", "-k", FEWER.get(suite, ""),
        str(ROOT / "tests" / suite)], env=environment, cwd=ROOT, timeout=LIMIT)
    print(done.stdout[-6000:], done.stderr[-2000:])
    assert done.returncode == 0
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 0
