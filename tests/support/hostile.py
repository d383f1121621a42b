"""Stores that somebody changed on purpose, and everything that a user does with one."""

import errno
import os
import shutil
import sqlite3
import subprocess
import time

from support.files import random_bytes
from support.mounts import POLL_SECONDS, make_store, mounted, wait_for
from support.shards import shard
from support.watchdog import abort_connection, detach, mount_device

PACKED = 300_000          # bytes of a tensor: too large for the database
MEMORY = 400 << 20        # bytes that any process of ours may take, with what the sanitizers add left out
ENTRIES = 200             # of a walk: a cycle of directories has no end
PER_FILE = 1 << 20        # bytes that are read at each of some places
SECONDS = int(os.environ.get("WEIGHTFS_HOSTILE_SECONDS", "60"))  # a limit that tells a hang
SANITIZED = "ASAN_OPTIONS" in os.environ or "TSAN_OPTIONS" in os.environ

# What a call on a file of a broken store may answer: damage is EIO or EUCLEAN, the rest is as on any disk.
ALLOWED = {errno.EIO, errno.EUCLEAN, errno.ENOENT, errno.ENODATA, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM,
           errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ENXIO, errno.ENODEV, errno.ENAMETOOLONG,
           errno.EBADMSG, errno.ESTALE, errno.EEXIST, errno.ENOTEMPTY, errno.EROFS, errno.ETXTBSY, errno.EFBIG,
           errno.ERANGE, errno.ENOTTY, errno.EBUSY, errno.ENOSPC, errno.EOVERFLOW, errno.E2BIG, errno.ENOMEM}


# ---- stores to begin with ----

def fill(root):
    """One of everything that a store can hold."""
    model = root / "run" / "checkpoint-1"
    model.mkdir(parents=True)
    tensors = {name: random_bytes(seed, PACKED) for seed, name in enumerate("abc")}
    tensors["small"] = random_bytes(8, 100)
    (model / "model-00001-of-00002.safetensors").write_bytes(shard(tensors))
    tensors["c"] = random_bytes(9, PACKED)
    (model / "model-00002-of-00002.safetensors").write_bytes(shard({"x" + name: t for name, t in tensors.items()}))
    (model / "config.json").write_text('{"model_type": "none"}\n')
    (model / "empty").touch()
    (root / "opaque.bin").write_bytes(random_bytes(20, PACKED))
    (root / "small.bin").write_bytes(random_bytes(21, 5000))
    os.link(model / "config.json", root / "hard")
    os.symlink("run/checkpoint-1", root / "latest")
    os.mkfifo(root / "fifo")
    os.setxattr(root / "small.bin", "user.note", b"a note")
    os.setxattr(model, "user.weightfs.max_shard_size", b"500KB")


def dirty(root):
    """What waits: to be sealed, to be put into shards, to be removed."""
    (root / "dirty.bin").write_bytes(random_bytes(30, PACKED))
    (root / "dirty.safetensors").write_bytes(shard({"d": random_bytes(31, PACKED)}))
    (root / "run" / "checkpoint-1" / ".tensors" / "late.safetensors").write_bytes(
        shard({"late": random_bytes(32, 1000)}))
    return os.open(root / "small.bin", os.O_RDONLY)


def make_clean(weightfs, watchdog, base):
    """The path of a store that was sealed and unmounted in order."""
    return make_store(weightfs, watchdog, base, fill)


def make_killed(weightfs, watchdog, base):
    """The path of a store whose driver was killed: a log, dirty files, a file without a name, a tensor that waits."""
    with mounted(weightfs, watchdog, base) as m:
        fill(m.dir)
        m.wait_sealed()
        held = dirty(m.dir)
        os.unlink(m.dir / "small.bin")
        m.kill()
        os.close(held)
    return m.store


def copy_store(store, to):
    """A copy in every detail: fifos, devices, links."""
    subprocess.run(["cp", "-a", store, to], check=True)
    return to


# ---- changes ----

NONSENSE_PRAGMAS = ["PRAGMA ignore_check_constraints = ON", "PRAGMA writable_schema = ON", "PRAGMA journal_mode = DELETE"]


def connect(store):
    """The database, with nothing in the way of nonsense."""
    db = sqlite3.connect(store / "weightfs.db", isolation_level=None)
    for pragma in NONSENSE_PRAGMAS:
        db.execute(pragma)
    return db


def run_sql(store, *statements):
    db = connect(store)
    for statement in statements:
        db.execute(statement)
    db.close()


def change_without_index(store, index, *statements):
    """Change a table behind the back of one of its indexes."""
    db = connect(store)
    row = db.execute("SELECT type, name, tbl_name, rootpage, sql FROM sqlite_schema WHERE name = ?", (index,)).fetchone()
    assert row, f"no index {index}"
    db.execute("DELETE FROM sqlite_schema WHERE name = ?", (index,))
    db.close()
    db = connect(store)
    for statement in statements:
        db.execute(statement)
    db.execute("INSERT INTO sqlite_schema (type, name, tbl_name, rootpage, sql) VALUES (?, ?, ?, ?, ?)", row)
    db.close()


# ---- what a user does with it ----

def tried(call, *args):
    """The result of a call on the mount, or None where it failed in one of the ways that are allowed."""
    try:
        return call(*args)
    except OSError as error:
        assert error.errno in ALLOWED, f"{call.__name__}{args}: {error}"
        return None


def read_places(path):
    """Read the beginning, the end, and places where nothing can be."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        size = os.fstat(fd).st_size
        got = 0
        for offset in {0, size // 2, max(0, size - 4096), size, 1 << 40, (1 << 63) - 4097}:
            got += len(tried(os.pread, fd, PER_FILE, offset) or b"")
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            tried(os.lseek, fd, 0, whence)
        return got
    finally:
        os.close(fd)


def look(path):
    """Everything that one may ask of a name without changing it."""
    info = tried(os.lstat, path)
    tried(os.readlink, path)
    for name in tried(lambda: os.listxattr(path, follow_symlinks=False)) or ():
        tried(lambda: os.getxattr(path, name, follow_symlinks=False))
    tried(lambda: os.getxattr(path, "user.weightfs.error", follow_symlinks=False))
    if info is not None and (info.st_mode & 0o170000) == 0o100000:
        tried(read_places, path)
    return info


def walk(root):
    """Look at what is below `root`, views included, at most ENTRIES names; how many there were."""
    waiting, seen = [root], 0
    while waiting and seen < ENTRIES:
        directory = waiting.pop(0)
        names = tried(os.listdir, directory) or []
        if not directory.endswith((b"/.tensors", b"/.shards")) and b"/.shards/" not in directory:
            names += [b".tensors", b".shards/300KB", b".shards"]
        for name in names[:ENTRIES]:
            path = directory + b"/" + name
            info = look(path)
            seen += 1
            if info is not None and (info.st_mode & 0o170000) == 0o040000:
                waiting.append(path)
    return seen


def change(root):
    """Write, rename, remove: beside what is there, and over it."""
    here = root + b"/written by the test"
    tried(os.mkdir, here)
    data = shard({"new": random_bytes(77, PACKED)})
    tried(write_new, here + b"/new.safetensors", data)
    tried(os.rename, here + b"/new.safetensors", here + b"/newer.safetensors")
    for name in (tried(os.listdir, root) or [])[:ENTRIES]:
        path = root + b"/" + name
        info = tried(os.lstat, path)
        if info is not None and (info.st_mode & 0o170000) == 0o100000:
            tried(append, path)
            tried(os.truncate, path, 100)
            tried(os.rename, path, here + b"/moved")
        if name != b"written by the test":
            tried(os.rename, path, here + b"/entry")
    model = root + b"/run/checkpoint-1"
    tried(write_new, model + b"/.tensors/new.safetensors", shard({"new": b"x" * 64}))
    tried(os.unlink, model + b"/.tensors/a.safetensors")
    tried(os.setxattr, model, "user.weightfs.max_shard_size", b"400KB")
    for name in tried(os.listdir, model) or []:
        tried(os.unlink, model + b"/" + name)


def write_new(path, data):
    with open(path, "wb") as f:
        f.write(data)


def append(path):
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
    try:
        os.write(fd, b"more")
    finally:
        os.close(fd)


# ---- the driver and the commands ----


def peak(pid):
    """The most memory that a process has had since its exec, in bytes (rusage counts what it was forked from, too)."""
    try:
        with open(f"/proc/{pid}/status") as status:
            return next((int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM")), 0)
    except OSError:
        return 0


class Hostile:
    """Runs everything there is on a store that may be broken in any way."""

    def __init__(self, weightfs, watchdog, base):
        self.weightfs, self.watchdog, self.base = str(weightfs), watchdog, base
        self.dir = base / "mnt"
        self.dir.mkdir(exist_ok=True)

    def started(self, *args):
        """A process whose words go to a file: what it has to say is not to be held up."""
        with open(self.base / f"words-{args[0]}", "wb") as words:
            return subprocess.Popen([self.weightfs, *map(str, args)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                    stderr=words)

    def ended(self, process, what):
        """Wait for the end of a process: not by a signal, and with no more memory than there is cause for."""
        deadline = time.monotonic() + SECONDS
        pid = most = 0
        while pid == 0:
            most = max(most, peak(process.pid))
            pid, status = os.waitpid(process.pid, os.WNOHANG)
            if pid == 0 and time.monotonic() > deadline:
                process.kill()
                process.wait()
                raise AssertionError(f"{what}: hangs")
            time.sleep(0 if pid else POLL_SECONDS / 4)
        process.returncode = os.waitstatus_to_exitcode(status)
        text = (self.base / f"words-{process.args[1]}").read_text(errors="replace")
        assert process.returncode in (0, 1), f"{what}: exit status {process.returncode}\n{text[-4000:]}"
        assert process.returncode == 0 or text.strip() or what == "fsck", f"{what}: refused without a word"
        assert SANITIZED or most < MEMORY, f"{what}: took {most >> 20} MiB"
        return process.returncode, text

    def command(self, *args):
        return self.ended(self.started(*args), args[0])

    def mounted(self, store, *options):
        """The driver of `store` in the foreground, once it serves; None where it refused."""
        driver = self.started("mount", "-f", store, self.dir, *(["-o", ",".join(options)] if options else []))
        deadline = time.monotonic() + SECONDS
        while mount_device(self.dir) is None:
            if (os.waitid(os.P_PID, driver.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                return self.ended(driver, "mount") and None
            if time.monotonic() > deadline:
                driver.kill()
                driver.wait()
                raise AssertionError("mount: hangs")
            time.sleep(POLL_SECONDS / 4)
        self.watchdog.tell(arm=str(self.dir), pid=driver.pid, store=str(store), seconds=4 * SECONDS)
        return driver

    def unmount(self, driver):
        try:
            self.ask_to_unmount()
            return self.ended(driver, "driver")
        except (AssertionError, subprocess.TimeoutExpired) as problem:
            if driver.returncode is None:
                driver.kill()
                driver.wait()
            text = (self.base / "words-mount").read_text(errors="replace")
            raise AssertionError(f"{problem}\n{text[-4000:]}") from None
        finally:
            self.watchdog.tell(disarm=str(self.dir))

    def ask_to_unmount(self):
        for _ in range(100):
            done = subprocess.run([self.weightfs, "umount", str(self.dir)], capture_output=True, text=True, timeout=SECONDS)
            if "busy" not in done.stderr:
                break
            time.sleep(POLL_SECONDS)
        wait_for(lambda: mount_device(self.dir) is None, SECONDS, f"the unmount: {done.stderr}")

    def served(self, store, *options, writes=True):
        """Mount, look at everything, change things, unmount. False where the mount was refused."""
        driver = self.mounted(store, *options)
        if driver is None:
            return False
        root = os.fsencode(self.dir)
        try:
            walk(root)
            tried(os.statvfs, root)
            if writes:
                change(root)
                walk(root)
        finally:
            self.unmount(driver)
        return True

    def commands(self, store):
        for args in (["fsck", store, "--bytes"], ["status", store]):
            self.command(*args)

    def end(self):
        if mount_device(self.dir) is not None:
            abort_connection(str(self.dir))
            detach(str(self.dir))


def everything(hostile, store, *, options=(("passthrough=on",), ("passthrough=off",))):
    """Look at a store with each command and serve it on each path, each from the same bytes."""
    hostile.commands(store)
    served = []
    for number, how in enumerate(options):
        copy = copy_store(store, hostile.base / f"copy-{number}")
        served.append(hostile.served(copy, *how))
        hostile.commands(copy)
        shutil.rmtree(copy)
    return served
