"""kill -9 of the driver while programs wait for it: every one of them gets its answer."""

import os
import threading
import time

import pytest

from support import shards
from support.files import write_file
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


@pytest.mark.parametrize("passthrough", ["auto", "off"])
def test_killed_while_directories_change(unmounted, passthrough):
    """Who waits for a directory when the driver dies hears that it died; nobody stays in the kernel for ever."""
    mount = unmounted
    for number in range(ROUNDS):
        mount.mount(f"passthrough={passthrough}")
        connection = f"{CONNECTIONS}/{os.minor(os.stat(mount.dir).st_dev)}"
        savers = [threading.Thread(target=save, args=(mount.dir, n), daemon=True) for n in range(SAVERS)]
        for saver in savers:
            saver.start()
        time.sleep(0.1 + 0.07 * number)
        mount.kill()
        for saver in savers:
            saver.join(END_SECONDS)
        hung = [saver for saver in savers if saver.is_alive()]
        if hung:
            with open(f"{connection}/abort", "w") as f:
                f.write("1")
        assert not hung, "programs wait for a driver that was killed"
