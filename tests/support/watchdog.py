"""A process of its own that ends mounts which the test process no longer can.

A process that waits for a hung FUSE driver takes no signal, and a page fault
holds Python's global lock: neither a signal nor a thread of the test process
can be relied on. So this runs beside it and reads one JSON object a line:

    {"arm": DIR, "pid": N, "store": PATH, "seconds": N}
    {"disarm": DIR}

A mount that is armed for longer than its seconds has its connection aborted:
every request on it then fails with ENOTCONN, and the test with it. At the end
of the input (the test process is gone) whatever is still armed is aborted,
unmounted, and its driver killed.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time

CONNECTIONS = "/sys/fs/fuse/connections"


def mount_device(directory):
    """The device number (minor) of the mount at `directory`, None where nothing is mounted.

    Reads the kernel's table: a look at the directory itself may hang.
    """
    found = None
    with open("/proc/self/mountinfo") as table:
        for line in table:
            fields = line.split()
            if fields[4].replace("\\040", " ") == str(directory):
                found = int(fields[2].split(":")[1])
    return found


def abort_connection(directory):
    """Abort the FUSE connection that is mounted at `directory`, if one is."""
    try:
        with open(f"{CONNECTIONS}/{mount_device(directory)}/abort", "w") as f:
            f.write("1")
    except OSError:
        pass


def detach(directory):
    """Take the mount at `directory` out of the tree, whatever state it is in."""
    for command in (["fusermount3", "-u", "-z", directory], ["umount", "-l", directory]):
        try:
            if subprocess.run(command, capture_output=True, timeout=20).returncode == 0:
                return True
        except (OSError, subprocess.TimeoutExpired):
            pass
    return False


def runs_store(pid, store):
    """Is `pid` (still) a process that was started for `store`?"""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            return os.fsencode(store) in f.read()
    except OSError:
        return False


def finish(entry):
    if mount_device(entry["arm"]) is not None:
        abort_connection(entry["arm"])
        detach(entry["arm"])
    if entry["pid"] and runs_store(entry["pid"], entry["store"]):
        try:
            os.kill(entry["pid"], signal.SIGKILL)
        except OSError:
            pass


class Watchdog:
    """The test process's end of the pipe."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__)],
            stdin=subprocess.PIPE, text=True, start_new_session=True)

    def tell(self, **message):
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def close(self):
        self.process.stdin.close()
        self.process.wait(60)


def main():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    armed = {}
    pending = b""
    while True:
        now = time.monotonic()
        for entry in armed.values():
            if entry["at"] <= now:
                print(f"watchdog: {entry['arm']} hangs, its connection is aborted", file=sys.stderr, flush=True)
                abort_connection(entry["arm"])
                entry["at"] = now + 5
        wait = min((entry["at"] - now for entry in armed.values()), default=3600)
        if not select.select([0], [], [], max(wait, 0))[0]:
            continue
        chunk = os.read(0, 65536)
        if not chunk:
            break
        *lines, pending = (pending + chunk).split(b"\n")
        for message in map(json.loads, lines):
            if "arm" in message:
                armed[message["arm"]] = message | {"at": time.monotonic() + message["seconds"]}
            else:
                armed.pop(message["disarm"], None)
    for entry in armed.values():
        finish(entry)


if __name__ == "__main__":
    main()
