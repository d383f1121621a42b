"""Where the work is done: the disk itself, and file systems that keep their bytes on it, side by side."""

import json
import os
import pwd
import shutil
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

WHO = "weightfs-test"
EXAMPLES = Path("/usr/share/doc/libfuse3-dev/examples")  # Debian's package has their sources
SETTLE_SECONDS = 600
BUSY_SECONDS = 10


def as_user(user):
    """The words in front of a command that `user` is to run (None: whoever we are)."""
    if user is None:
        return []
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--inh-caps=-all",
            "env", f"HOME={pwd.getpwnam(user).pw_dir}"]


def run(command, text=None, **options):
    """The output of a command that reads `text`, in a session of its own, all of which ends if we do."""
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, stdin=subprocess.PIPE if text else subprocess.DEVNULL,
                               text=True, start_new_session=True, **options)
    try:
        output, errors = process.communicate(text)
    except BaseException:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        raise
    if process.returncode != 0:
        words = " ".join(map(str, command))
        raise RuntimeError(f"exit status {process.returncode} of {words[:300]}: {errors.strip()[-400:]}")
    return output


def mounted_at(directory):
    """Is something mounted there? By the kernel's table: the directory may hang, or be closed to us."""
    with open("/proc/self/mountinfo") as table:
        return any(line.split()[4].replace("\\040", " ") == str(directory) for line in table)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def mounts_below(directory):
    with open("/proc/self/mountinfo") as table:
        names = [line.split()[4].replace("\\040", " ") for line in table]
    return [name for name in names if name.startswith(f"{directory}/")]


class Place:
    """A directory to work in. `user` does it; the disk itself is not mounted."""

    name = "disk"
    user = None

    def __init__(self, base, tools, directory=None):
        self.base = base / (directory or self.name.replace(" ", "-"))
        self.tools = tools
        self.dir = self.base / "dir"
        self.make(self.base)
        self.make(self.dir)

    def make(self, path):
        path.mkdir()
        if self.user:
            shutil.chown(path, self.user, self.user)

    @property
    def fixtures(self):
        """Where fixtures are made, to be seen in `dir`."""
        return self.dir

    def run(self, *command, **options):
        """Run a command as the one who works here; its output."""
        return run([*as_user(self.user), *command], **options)

    def mount(self):
        pass

    def umount(self):
        pass

    def settle(self):
        """Wait until nothing of what was written is worked on any more."""
        os.sync()

    def kept(self):
        """Bytes that are kept of what is here, where that is something else than the files' sizes."""
        return None

    def processors(self):
        return len(os.sched_getaffinity(0))

    def end(self):
        """Leave nothing mounted, by force if it must be. What went wrong, or None."""
        if not mounted_at(self.dir):
            return None
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                self.umount()
            except RuntimeError as error:
                # Whoever looks through all mounts of the machine keeps one busy for a moment.
                if "busy" in str(error) and time.monotonic() < deadline:
                    time.sleep(0.1)
                    continue
                problem = str(error)
            else:
                problem = None
            break
        if mounted_at(self.dir):
            subprocess.run(["umount", "-l", self.dir] if os.geteuid() == 0 else
                           ["fusermount3", "-u", "-z", self.dir], capture_output=True)
        return problem


class Mirror(Place):
    """One that shows the directory `below`."""

    def make_below(self):
        self.below = self.base / "below"
        if not self.below.exists():
            self.make(self.below)

    @property
    def fixtures(self):
        """Below: what is only made to be read need not be written in requests of 4 KiB, as bindfs does."""
        return self.below

    def umount(self):
        self.run("fusermount3", "-u", self.dir)


class Bindfs(Mirror):
    name = "bindfs"
    options = ()

    def mount(self):
        self.make_below()
        self.run("bindfs", *self.options, self.below, self.dir)


class BindfsOfUser(Bindfs):
    name = "bindfs ordinary"
    user = WHO
    options = ("--no-allow-other",)


class Example(Mirror):
    """libfuse's example: passthrough_hp where there is one, else passthrough_ll."""

    name = "passthrough"

    def mount(self):
        self.make_below()
        program = self.tools.example
        # It keeps a descriptor for each inode that the kernel knows.
        many = ["sh", "-c", 'ulimit -n "$(ulimit -H -n)"; exec "$@"', "sh"]
        if program.name == "passthrough_hp":
            self.run(*many, program, self.below, self.dir)
        else:
            self.run(*many, program, "-o", f"source={self.below}", self.dir)


class Weightfs(Place):
    name = "weightfs"

    @property
    def store(self):
        return self.base / "store"

    def mount(self):
        self.run(self.tools.weightfs, "mount", self.store, self.dir)

    def timed_mount(self):
        """The seconds that it took."""
        begin = time.monotonic()
        self.mount()
        return time.monotonic() - begin

    def umount(self):
        pid = self.pid()
        self.run(self.tools.weightfs, "umount", self.dir)
        deadline = time.monotonic() + SETTLE_SECONDS
        while is_running(pid) and time.monotonic() < deadline:
            time.sleep(0.01)

    def pid(self):
        """The driver's process."""
        return int((self.store / "lock").read_text().split()[0])

    def settle(self):
        deadline = time.monotonic() + SETTLE_SECONDS
        while (status := self.status())["dirty"] or status["pending_bytes"]:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name}: not sealed after {SETTLE_SECONDS} s")
            time.sleep(0.1)
        os.sync()

    def status(self):
        return json.loads(self.run(self.tools.weightfs, "status", self.store, "--json"))

    def dirty(self):
        """How many files are not sealed, read from the database: `weightfs status` takes 10 ms to say it."""
        database = sqlite3.connect(f"file:{self.store}/weightfs.db?mode=ro", uri=True)
        try:
            return database.execute("SELECT count(*) FROM inode WHERE data_file IS NOT NULL").fetchone()[0]
        finally:
            database.close()

    def kept(self):
        """The larger of what status says and of the disk blocks of the data files."""
        self.settle()
        files = [path for path in (self.store / "data").rglob("*") if path.is_file()]
        blocks = sum(path.stat().st_blocks * 512 for path in files)
        return max(blocks, self.status()["stored_bytes"])


class WeightfsOfUser(Weightfs):
    name = "weightfs ordinary"
    user = WHO


class Tools:
    """The binaries that are measured, copied to where every user can run them."""

    def __init__(self, build, base, examples=None):
        directory = base / "bin"
        directory.mkdir()
        for name in ("weightfs", "bench-worker", "bench-probe", "bench-store"):
            shutil.copy2(Path(build) / name, directory / name)
        self.weightfs = directory / "weightfs"
        self.worker = directory / "bench-worker"
        self.probe = directory / "bench-probe"
        self.store = directory / "bench-store"
        self.example = find_example(examples, directory)


def find_example(examples, directory):
    """passthrough_hp or _ll: below `examples`, in PATH, or compiled from the distribution's source."""
    for name in ("passthrough_hp", "passthrough_ll"):
        found = list(Path(examples).rglob(name)) if examples else []
        found += [Path(path) for path in [shutil.which(name)] if path]
        for path in found:
            if os.access(path, os.X_OK) and path.is_file():
                return path
    source = EXAMPLES / "passthrough_ll.c"
    target = directory / "passthrough_ll"
    if not source.exists():
        return None
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], capture_output=True, text=True)
    done = subprocess.run(["cc", "-O2", "-w", "-o", target, source, *flags.stdout.split()],
                          capture_output=True)
    return target if done.returncode == 0 else None


def user_exists():
    try:
        pwd.getpwnam(WHO)
        return True
    except KeyError:
        return False


def make_user():
    """True if he was not there."""
    if user_exists():
        return False
    done = subprocess.run(["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/bin/sh",
                           WHO], capture_output=True)
    return done.returncode == 0


def remove_user():
    subprocess.run(["userdel", WHO], capture_output=True)


def user_may_enter(base):
    return subprocess.run([*as_user(WHO), "test", "-x", base], capture_output=True).returncode == 0


def places(base, tools, say):
    """All that whoever runs this can have; root has the ordinary user's, too."""
    if os.geteuid() != 0:
        kinds = [Place, BindfsOfUser, WeightfsOfUser]
        for kind in kinds:
            kind.user = None
    else:
        kinds = [Place, Bindfs, Weightfs]
        if tools.example:
            kinds.insert(2, Example)
        else:
            say("libfuse's passthrough example was not found: left out (--fuse-examples DIR)")
        if user_exists() and user_may_enter(base):
            kinds += [BindfsOfUser, WeightfsOfUser]
        else:
            say(f"the user {WHO} cannot be made or cannot enter {base} (--base DIR): his mounts are left out")
    if not shutil.which("bindfs"):
        say("bindfs is not installed: left out")
        kinds = [kind for kind in kinds if not issubclass(kind, Bindfs)]
    return [kind(base, tools) for kind in kinds]
