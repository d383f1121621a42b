"""A store and its mount, as the tests use them."""

import contextlib
import json
import os
import signal
import subprocess
import time

from support.watchdog import abort_connection, detach, mount_device, runs_store

COMMAND_SECONDS = 120
SETTLE_SECONDS = 60
POLL_SECONDS = 0.02
BUSY_SECONDS = 3
SETTLES = ["dirty", "sealed", "remounted"]  # the states of what was just written, for Mount.settle()


def wait_for(condition, seconds, what):
    """Poll `condition` until it is true; its value, or an assertion that names `what`."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(POLL_SECONDS)


def thread_states(pid):
    """The letter of each thread of a process, as proc(5) has it."""
    states = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/task/{task}/stat") as f:
            states.append(f.read().rpartition(")")[2].split()[0])
    return states


def is_running(pid):
    """Does process `pid` exist and is not only waiting to be reaped?"""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def disk_blocks(root):
    """Bytes of disk blocks in use below `root`, each inode once: what du says."""
    total, seen = 0, set()
    for directory, names, files in os.walk(root):
        for name in names + files:
            try:
                info = os.lstat(os.path.join(directory, name))
            except FileNotFoundError:
                continue
            if (info.st_dev, info.st_ino) not in seen:
                seen.add((info.st_dev, info.st_ino))
                total += info.st_blocks * 512
    return total


def data_files(store):
    """The data files of a store: what staging areas and packs there are."""
    return [path for path in (store / "data").rglob("*") if path.is_file()]


def filled_data_files(store):
    """Those that are not kept empty for what comes next."""
    return {path for path in data_files(store) if path.stat().st_size}


def data_path(store, number):
    """Where data file `number` of a store is."""
    return store / "data" / f"{number & 0xff:02x}" / f"{number:016x}"


class Mount:
    """One store below `base`, and the directory where it is mounted."""

    def __init__(self, weightfs, base, watchdog, seconds):
        self.weightfs = str(weightfs)
        self.store = base / "store"
        self.dir = base / "mnt"
        self.dir.mkdir()
        self.watchdog = watchdog
        self.seconds = seconds
        self.options = ()
        self.pid = None

    # ---- commands ----

    def run(self, *args, check=True, timeout=COMMAND_SECONDS):
        """Run `weightfs ARGS`; the finished process, its output as text."""
        done = subprocess.run([self.weightfs, *map(str, args)], capture_output=True, text=True,
                              timeout=timeout, stdin=subprocess.DEVNULL)
        if check:
            assert done.returncode == 0, (
                f"weightfs {' '.join(map(str, args))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def json(self, *args, check=True):
        return json.loads(self.run(*args, "--json", check=check).stdout)

    def status(self):
        return self.json("status", self.store)

    def reports(self):
        """The status reports by path ("/a/b")."""
        return {report["path"]: report for report in self.status()["reports"]}

    def fsck(self, *, check_bytes=True):
        """What fsck finds, as its JSON; the store need not be clean."""
        options = ["--bytes"] if check_bytes else []
        done = self.run("fsck", self.store, *options, "--json", check=False, timeout=300)
        assert done.returncode in (0, 1), done.stderr
        return json.loads(done.stdout)

    def assert_clean(self):
        found = self.fsck()["findings"]
        assert found == [], f"fsck of {self.store}: {json.dumps(found, indent=1)}"

    def log(self):
        """The driver's log so far."""
        try:
            return (self.store / "weightfs.log").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    # ---- life of the mount ----

    @property
    def mounted(self):
        return mount_device(self.dir) is not None

    def mount(self, *options):
        """Mount; `options` are for -o and are kept for remount()."""
        self.options = options
        flags = ["-o", ",".join(options)] if options else []
        self.run("mount", self.store, self.dir, *flags)
        assert self.mounted, "mount returned 0, but nothing is mounted"
        self.pid = int((self.store / "lock").read_text().split()[0])
        self.watchdog.tell(arm=str(self.dir), pid=self.pid, store=str(self.store),
                           seconds=self.seconds)
        return self

    def umount(self):
        """Unmount in order; the driver is gone afterwards."""
        # Whoever looks through every mount of the machine keeps this one busy for a moment.
        deadline = time.monotonic() + BUSY_SECONDS
        while "busy" in self.run("umount", self.dir, check=time.monotonic() > deadline).stderr:
            time.sleep(POLL_SECONDS)
        assert not self.mounted, "umount returned 0, but the directory is still mounted"
        wait_for(lambda: not is_running(self.pid), 60, "the driver's end after umount")
        self.watchdog.tell(disarm=str(self.dir))
        self.pid = None

    def remount(self):
        self.umount()
        return self.mount(*self.options)

    def signal(self, number):
        """Send the driver a signal that asks it to stop; returns when it is gone."""
        os.kill(self.pid, number)
        wait_for(lambda: not is_running(self.pid), SETTLE_SECONDS, f"the driver's end by signal {number}")
        self.watchdog.tell(disarm=str(self.dir))
        self.pid = None

    @contextlib.contextmanager
    def stopped(self):
        """The driver does not run in this block, none of its threads: SIGSTOP reaches them one by one."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            wait_for(lambda: all(state == "T" for state in thread_states(self.pid)), 60, "the driver's standstill")
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def kill(self):
        """kill -9 the driver, and take the dead mount out of the tree."""
        os.kill(self.pid, signal.SIGKILL)
        wait_for(lambda: not is_running(self.pid), 60, "the killed driver's end")
        assert detach(str(self.dir)), "the dead mount could not be detached"
        self.watchdog.tell(disarm=str(self.dir))
        self.pid = None

    def end(self):
        """Leave nothing mounted and nothing running; True if that was orderly."""
        orderly = not self.mounted or self._umount_orderly()
        if not orderly:
            abort_connection(str(self.dir))
            detach(str(self.dir))
        self._kill_driver()
        self.watchdog.tell(disarm=str(self.dir))
        return orderly

    def _umount_orderly(self):
        try:
            self.umount()
            return True
        except (AssertionError, subprocess.TimeoutExpired) as problem:
            print(f"the mount did not end in order: {problem}\nlog:\n{self.log()[-4000:]}")
            return False

    def _kill_driver(self):
        if self.pid and is_running(self.pid) and runs_store(self.pid, str(self.store)):
            os.kill(self.pid, signal.SIGKILL)

    # ---- what it holds ----

    def settled(self):
        """A status without dirty files and without space to be given back, else None."""
        status = self.status()
        return status if status["dirty"] == 0 and status["pending_bytes"] == 0 else None

    def wait_sealed(self, seconds=SETTLE_SECONDS):
        """Wait until the background has sealed and given back all it can."""
        return wait_for(self.settled, seconds, "every file sealed and the space given back")

    def settle(self, how):
        """Bring what was written into one of SETTLES."""
        if how == "sealed":
            self.wait_sealed()
        elif how == "remounted":
            self.remount()

    def disk(self):
        """Disk blocks of the store in bytes, without the logs and the directories of data files.

        These are in no relation to what the store holds: SQLite's write-ahead
        log is bounded and empty after an unmount, and there are 256
        directories in the end, each made with the first file in it.
        """
        rest = [self.store / name for name in ("weightfs.db-wal", "weightfs.db-shm", "weightfs.log")]
        rest += (self.store / "data").glob("??")
        total = disk_blocks(self.store)
        for path in rest:
            try:
                total -= os.lstat(path).st_blocks * 512
            except FileNotFoundError:
                pass
        return total

    def wait_disk(self, at_most, seconds=SETTLE_SECONDS):
        """Wait until the store holds at most that many bytes of disk blocks."""
        deadline = time.monotonic() + seconds
        while (now := self.disk()) > at_most:
            assert time.monotonic() < deadline, (
                f"{now:,} bytes of disk blocks after {seconds} s, not at most {at_most:,}: "
                f"{json.dumps(self.status())}")
            time.sleep(POLL_SECONDS * 5)
        return now




@contextlib.contextmanager
def mounted(weightfs, watchdog, base, *, store=None):
    """A Mount below `base`, which is made where it is missing; of a new store, or of `store`. Ended in any case."""
    base.mkdir(exist_ok=True)
    m = Mount(weightfs, base, watchdog, 300)
    m.store = store or m.store
    try:
        yield m.mount()
    finally:
        m.end()


def make_store(weightfs, watchdog, base, fill):
    """The path of a new store: what `fill` puts into the mount's directory, sealed, and unmounted in order."""
    with mounted(weightfs, watchdog, base) as m:
        fill(m.dir)
        m.wait_sealed()
        m.umount()
    return m.store
