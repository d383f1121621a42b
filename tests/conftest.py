"""Fixtures of the tests on real mounts.

`mount` is a fresh store, mounted. After the test it is unmounted whatever
happened, and `weightfs fsck --bytes` of its store must be clean. Environment:

    WEIGHTFS                the binary under test; else weightfs in WEIGHTFS_BUILD, else in build/
    WEIGHTFS_REQUIRE_MOUNT  1: fail, where otherwise mount tests are skipped
    WEIGHTFS_ENDURANCE      0: leave out what is marked as endurance
"""

import os
import pathlib
import pwd
import shutil
import subprocess

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from support.mounts import Mount
from support.watchdog import CONNECTIONS, Watchdog

ROOT = pathlib.Path(__file__).resolve().parent.parent
OTHER_USER = "weightfs-test"
WATCHDOG_GRACE = 10  # seconds past the test's own limit
LONG_SECONDS = 900 # least limit of a test of minutes
NOT_HERE = pytest.StashKey()


def cannot_mount():
    """Why a FUSE file system cannot be mounted here, or None."""
    if not os.path.exists("/dev/fuse"):
        return "there is no /dev/fuse (modprobe fuse; in a container: --device /dev/fuse --cap-add SYS_ADMIN)"
    if os.geteuid() == 0:
        os.chmod("/dev/fuse", 0o666)
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse may not be opened by this user (chmod 666 /dev/fuse)"
    if not shutil.which("fusermount3"):
        return "there is no fusermount3 (install fuse3)"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"/dev/fuse does not open: {error.strerror}"
    return None


def mount_control_filesystem():
    """Let hung connections be aborted: needs fusectl, which not every container mounts."""
    if os.geteuid() == 0 and not os.path.ismount(CONNECTIONS):
        subprocess.run(["mount", "-t", "fusectl", "fusectl", CONNECTIONS], capture_output=True)


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="also the tests that take minutes")


def pytest_collection_modifyitems(config, items):
    """What this run is not about is left out, not skipped: a skip says that something is missing."""
    unwanted = {"root_only"} if os.geteuid() != 0 else set()
    if not config.getoption("--long"):
        unwanted.add("long")
    if os.environ.get("WEIGHTFS_ENDURANCE") == "0":
        unwanted.add("endurance")
    out = [item for item in items if any(item.get_closest_marker(name) for name in unwanted)]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in set(out)]
    # A limit tells a hang, not a slow machine: two runs share its processors.
    for item in items:
        least = LONG_SECONDS if item.get_closest_marker("long") else float(config.getini("timeout"))
        if not config.getoption("timeout") and limit_of(item) < least:
            item.add_marker(pytest.mark.timeout(least), append=False)


def limit_of(item):
    """The seconds that a test may take, as it says itself or as it is for all."""
    marker = item.get_closest_marker("timeout")
    if marker:
        return marker.args[0] if marker.args else marker.kwargs["timeout"]
    return float(item.config.getoption("timeout") or item.config.getini("timeout"))


def pytest_terminal_summary(terminalreporter, config):
    reason = config.stash.get(NOT_HERE, None)
    if reason:
        terminalreporter.section("MOUNT TESTS WERE NOT RUN", sep="!", red=True, bold=True)
        terminalreporter.line(reason)


@pytest.fixture(scope="session")
def weightfs():
    """The binary under test."""
    build = pathlib.Path(os.environ.get("WEIGHTFS_BUILD", ROOT / "build"))
    path = pathlib.Path(os.environ.get("WEIGHTFS", build / "weightfs")).resolve()
    if not os.access(path, os.X_OK):
        pytest.fail(f"no binary at {path}: run make first, or set WEIGHTFS")
    return path


@pytest.fixture(scope="session")
def fuse(pytestconfig):
    """Skips (or fails, by WEIGHTFS_REQUIRE_MOUNT=1) where nothing can be mounted."""
    reason = cannot_mount()
    if reason is None:
        mount_control_filesystem()
        return
    pytestconfig.stash[NOT_HERE] = reason
    if os.environ.get("WEIGHTFS_REQUIRE_MOUNT") == "1":
        pytest.fail(f"mount tests are required: {reason}")
    pytest.skip(f"MOUNT TEST NOT RUN: {reason}")


@pytest.fixture(scope="session")
def watchdog(fuse):
    """Aborts what hangs, and cleans up after a test process that was killed."""
    dog = Watchdog()
    yield dog
    dog.close()


@pytest.fixture(scope="session")
def other_user():
    """An ordinary user's pwd entry; made where it is missing. Root only."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to act as another user")
    try:
        return pwd.getpwnam(OTHER_USER)
    except KeyError:
        subprocess.run(["useradd", "--system", "--no-create-home", "--shell", "/bin/sh", OTHER_USER],
                       check=True, capture_output=True)
        return pwd.getpwnam(OTHER_USER)


@pytest.fixture
def unmounted(weightfs, watchdog, tmp_path, request):
    """A Mount that the test mounts itself. Afterwards nothing is mounted, and its store (if any) is clean."""
    m = Mount(weightfs, tmp_path, watchdog, limit_of(request.node) + WATCHDOG_GRACE)
    yield m
    orderly = m.end()
    if (m.store / "weightfs.db").exists() and not request.node.get_closest_marker("leaves_damage"):
        m.assert_clean()
    assert orderly, "the mount had to be ended by force"


@pytest.fixture
def mount(unmounted):
    """A fresh store, mounted."""
    return unmounted.mount()


@pytest.fixture
def plain(tmp_path):
    """An ordinary directory beside the mount: what the mount is compared with."""
    path = tmp_path / "plain"
    path.mkdir()
    return path
