"""Where the work is done: the disk itself, and file systems that keep their bytes on it, all mounted side by side."""

import json
import os
import pwd
import shutil
import subprocess
import time
from pathlib import Path

USER = "weightfs-test"


def as_user(user):
    """The words in front of a command that `user` is to run (None: whoever we are)."""
    if user is None:
        return []
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--inh-caps=-all",
            "env", f"HOME={pwd.getpwnam(user).pw_dir}"]


class Place:
    """A directory to work in. `user` does it; `mount` and `umount` do nothing for the disk itself."""

    name = "disk"
    user = None

    def __init__(self, base, tools):
        self.base = base / self.name.replace(" ", "-")
        self.tools = tools
        self.dir = self.base / "dir"
        self.make(self.base)
        self.make(self.dir)

    def make(self, path):
        path.mkdir()
        if self.user:
            shutil.chown(path, self.user, self.user)

    def run(self, *command, **options):
        """Run a command as the one who works here; its output."""
        command = [*as_user(self.user), *map(str, command)]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **options).stdout

    def has(self, path):
        """Is it there? Of an ordinary user's mount root does not see that."""
        return subprocess.run([*as_user(self.user), "test", "-e", path]).returncode == 0

    def mount(self):
        pass

    def umount(self):
        pass

    def settle(self):
        """Wait until nothing of what was written is worked on any more."""
        os.sync()


class Bindfs(Place):
    name = "bindfs"
    options = ()

    def mount(self):
        below = self.base / "below"
        if not below.exists():
            self.make(below)
        self.run("bindfs", *self.options, below, self.dir)

    def umount(self):
        self.run("fusermount3", "-u", self.dir)


class BindfsOfUser(Bindfs):
    name = "bindfs ordinary"
    user = USER
    options = ("--no-allow-other",)


class Weightfs(Place):
    name = "weightfs"

    @property
    def store(self):
        return self.base / "store"

    def mount(self):
        self.run(self.tools.weightfs, "mount", self.store, self.dir)

    def umount(self):
        self.run(self.tools.weightfs, "umount", self.dir)

    def settle(self):
        deadline = time.monotonic() + 600
        while self.status()["dirty"] or self.status()["pending_bytes"]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name}: not sealed after 10 minutes")
            time.sleep(0.1)
        os.sync()

    def status(self):
        return json.loads(self.run(self.tools.weightfs, "status", self.store, "--json"))


class WeightfsOfUser(Weightfs):
    name = "weightfs ordinary"
    user = USER


class Tools:
    """The binaries under test."""

    def __init__(self, build):
        self.weightfs = Path(build) / "weightfs"
        self.worker = Path(build) / "bench-worker"


def places(base, tools):
    """All that this user can have: root has the ordinary user's, too."""
    kinds = [Place, Bindfs, Weightfs]
    if os.geteuid() == 0:
        kinds += [BindfsOfUser, WeightfsOfUser]
    return [kind(base, tools) for kind in kinds]
