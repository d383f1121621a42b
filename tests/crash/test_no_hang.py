"""kill -9 of the driver while programs wait for it, and its own end: every one of them gets its answer."""

import os
import pathlib
import signal
import threading
import time

import pytest

from support import shards
from support.files import write_file
from support.mounts import is_running, wait_for
from support.watchdog import CONNECTIONS

ROUNDS = 3
SAVERS = 6
END_SECONDS = 30


def save(directory, number):
    """One name after the other becomes a shard's: each time the kernel is told to forget it."""
    content = shards.valid(number, 2000)
    try:
        while True:
            write_file(directory / f"{number}.tmp", content)
            os.rename(directory / f"{number}.tmp", directory / f"{number}.safetensors")
    except OSError:
        pass


def start_savers(directory):
    """A descriptor of the directory, threads that save by it (its path leads elsewhere once the mount is detached),
    and what the kernel has of the mount's connection."""
    root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    path = pathlib.Path(f"/proc/self/fd/{root}")
    savers = [threading.Thread(target=save, args=(path, n), daemon=True) for n in range(SAVERS)]
    for saver in savers:
        saver.start()
    return root, savers, f"{CONNECTIONS}/{os.minor(os.fstat(root).st_dev)}"


def wait_for_savers(savers, connection):
    """Those that hang, until they are freed here."""
    deadline = time.monotonic() + END_SECONDS
    for saver in savers:
        saver.join(max(0, deadline - time.monotonic()))
    hung = [saver for saver in savers if saver.is_alive()]
    if hung:
        with open(f"{connection}/abort", "w") as f:
            f.write("1")
    return hung


@pytest.mark.parametrize("passthrough", ["auto", "off"])
def test_killed_while_directories_change(unmounted, passthrough):
    """Who waits for a directory when the driver dies hears that it died; nobody stays in the kernel for ever."""
    mount = unmounted
    for number in range(ROUNDS):
        mount.mount(f"passthrough={passthrough}")
        root, savers, connection = start_savers(mount.dir)
        time.sleep(0.1 + 0.07 * number)
        mount.kill()
        hung = wait_for_savers(savers, connection)
        os.close(root)
        assert not hung, "programs wait for a driver that was killed"


@pytest.mark.parametrize("passthrough", ["auto", "off"])
def test_told_to_end_while_directories_change(unmounted, passthrough):
    """The same where the driver is asked to end, and detaches a mount that is in use."""
    mount = unmounted
    for number in range(ROUNDS):
        mount.mount(f"passthrough={passthrough}")
        root, savers, connection = start_savers(mount.dir)
        time.sleep(0.1 + 0.07 * number)
        pid = mount.pid
        os.kill(pid, signal.SIGTERM)
        hung = wait_for_savers(savers, connection)
        os.close(root)
        assert not hung, "programs wait for a driver that was told to end"
        wait_for(lambda: not is_running(pid), END_SECONDS, "the driver's end")
