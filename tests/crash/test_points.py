"""The driver dies at each of its named points (lib/crash.h): what was acknowledged is there, and the store is in order.

    WEIGHTFS_POINT_PASSES    which passing of a point ends the driver, in the long form (default 1,2,3)
"""

import contextlib
import io
import os
import pathlib
import re
import signal
import sqlite3

import pytest

np = pytest.importorskip("numpy")
safetensors_numpy = pytest.importorskip("safetensors.numpy")

from support import shards
from support.files import KIB, MIB, libc, pwrite_all, random_bytes, read_file, write_all, write_file
from support.mounts import is_running, wait_for
from support.power import Disk, Power, disks
from support.watchdog import detach

ROOT = pathlib.Path(__file__).resolve().parents[2]
PASSES = [int(number) for number in os.environ.get("WEIGHTFS_POINT_PASSES", "1,2,3").split(",")]
POINTS = sorted({point for path in (ROOT / "lib").glob("*.c")
                 for point in re.findall(r'wfs_crash_at\("([a-z-]+)"\)', path.read_text())})
MIGRATE = [point for point in POINTS if point.startswith("migrate-")]
# Not passed by the load: a log of that length takes too long to write.
ELSEWHERE = [*MIGRATE, "checkpoint-before"]
LOADED = [point for point in POINTS if point not in ELSEWHERE]
# One of each kind is enough where time is short.
SHORT = ["seal-after-commit", "unseal-after-commit", "collect-before-forget", "put-after-commit", "repack-after-commit",
         "unmount-before-clean"]
STEP_SECONDS = 60
SET_CHILD_SUBREAPER = 36  # prctl(2)


class Died(Exception):
    """The driver is gone, as it was asked to be."""


class Load:
    """Passes every point once at least. `has` is what each name holds, `doubt` what a name may hold for the call that is under way."""

    def __init__(self, mount, *, durable):
        self.mount, self.durable = mount, durable
        self.root = mount.dir
        self.has, self.doubt, self.tensors, self.tensor_doubt = {}, {}, {}, {}

    @contextlib.contextmanager
    def doing(self, **changes):
        """The names in `changes` become so by what is done here; None: they go."""
        self.doubt = changes
        yield
        if self.durable:
            self.make_durable(changes)
        self.has |= changes
        self.doubt = {}

    def make_durable(self, changes):
        for name, content in changes.items():
            if content is not None:
                self.fsync(self.root / name)
        self.fsync(self.root)

    def fsync(self, path):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def write(self, name, content):
        with self.doing(**{name: content}):
            write_file(self.root / name, content)

    def rewrite(self, name, at, part):
        content = bytearray(self.has[name])
        content[at:at + len(part)] = part
        with self.doing(**{name: bytes(content)}):
            fd = os.open(self.root / name, os.O_RDWR)
            try:
                pwrite_all(fd, part, at)
            finally:
                os.close(fd)

    def replace(self, name, content):
        temporary = self.root / "saved.tmp"
        with self.doing(**{name: content}):
            write_file(temporary, content)
            os.rename(temporary, self.root / name)

    def clone(self, name, to):
        with self.doing(**{to: self.has[name]}):
            done = 0
            with open(self.root / name, "rb") as source, open(self.root / to, "wb") as target:
                while done < len(self.has[name]):
                    done += os.copy_file_range(source.fileno(), target.fileno(), len(self.has[name]) - done, done, done)

    def unlink(self, name):
        with self.doing(**{name: None}):
            os.unlink(self.root / name)

    def put(self, name, number):
        out = io.BytesIO()
        np.save(out, np.full(30_000, number, "<i8"))
        self.tensor_doubt = {name: number}
        fd = os.open(self.root / "model/.tensors" / f"{name}.npy", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            write_all(fd, out.getvalue())
        finally:
            os.close(fd)
        if self.durable:
            self.fsync(self.root / "model")
        self.tensors[name] = number
        self.tensor_doubt = {}

    def settled(self):
        """Sealed, and the space given back. Looks from outside: the driver may be gone."""
        def look():
            if not is_running(self.mount.pid):
                raise Died
            return self.mount.settled()
        wait_for(look, STEP_SECONDS, "sealed")

    def prepare(self):
        """By a driver that lives."""
        os.mkdir(self.root / "model")
        self.write("kept.bin", random_bytes(1, 300 * KIB))
        self.write("old.safetensors", shards.valid(2, 60_000))
        self.put("t0", 1)
        self.settled()

    def run(self):
        a, b, c = (random_bytes(10 + n, 600 * KIB) for n in range(3))
        self.write("whole.bin", random_bytes(3, 500 * KIB))
        self.write("small.txt", b"small" * 100)
        self.write("ab.safetensors", shards.shard({"a": a, "b": b}))
        self.settled()
        self.write("bc.safetensors", shards.shard({"b": b, "c": c}))
        self.settled()
        self.rewrite("whole.bin", 1000, b"in place")
        self.clone("kept.bin", "copied.bin")
        self.rewrite("copied.bin", 2000, b"by a copy")
        self.replace("old.safetensors", shards.valid(4, 70_000))
        self.settled()
        self.run_command("repack", self.root / "bc.safetensors")
        self.put("t0", 2)
        self.put("t1", 3)
        os.listdir(self.root / "model")
        self.unlink("ab.safetensors")
        self.write("gone.bin", random_bytes(5, 400 * KIB))
        self.settled()
        self.unlink("gone.bin")
        self.settled()
        self.mount.run("umount", self.root, check=False)

    def run_command(self, *args):
        done = self.mount.run(*args, check=False)
        if done.returncode != 0 and not is_running(self.mount.pid):
            raise Died
        assert done.returncode == 0, done.stderr

    # ---- afterwards ----

    def check(self):
        for name in self.has.keys() | self.doubt.keys():
            self.check_name(name)
        self.doubt = {}
        model = safetensors_numpy.load_file(self.root / "model/model.safetensors")
        for name in self.tensors.keys() | self.tensor_doubt.keys():
            values = set(model[name].tolist()) if name in model else {None}
            assert len(values) == 1 and values <= {self.tensors.get(name), self.tensor_doubt.get(name)}, (name, values)

    def check_name(self, name):
        path = self.root / name
        allowed = [self.has.get(name)] + ([self.doubt[name]] if name in self.doubt else [])
        found = read_file(path) if os.path.lexists(path) else None
        if found in allowed:
            self.has[name] = found
            return
        # What was under way was not made durable yet; where the driver alone died nothing is lost.
        assert name in self.doubt, f"{name} is not as it was acknowledged"
        if self.durable:
            assert os.getxattr(path, "user.weightfs.error"), f"{name} is silently wrong"
        else:
            assert found in (b"", None), f"{name} has bytes that nobody wrote"
        path.unlink()
        self.has[name] = None


@contextlib.contextmanager
def adopting():
    """Drivers that are started here become children of this process, which hears how they end."""
    assert libc.prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    try:
        yield
    finally:
        libc.prctl(SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def crash(mount, load, point, number):
    """Run the load until the driver dies at the point; True if it did."""
    os.environ["WEIGHTFS_CRASH_AT"] = f"{point}:{number}"
    try:
        with adopting():
            mount.mount(*mount.options)
    finally:
        del os.environ["WEIGHTFS_CRASH_AT"]
    reason = None
    try:
        load.run()
    except (OSError, Died) as died:
        reason = died
    wait_for(lambda: not is_running(mount.pid), STEP_SECONDS, f"the driver's end, after {reason!r}")
    status = os.waitpid(mount.pid, 0)[1]
    if mount.mounted:
        detach(str(mount.dir))
    mount.watchdog.tell(disarm=str(mount.dir))
    mount.pid = None
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def check_twice(mount, load):
    """As recovery left it, and once all is sealed and mounted anew."""
    load.check()
    mount.wait_sealed()
    mount.remount()
    load.check()


def kill_at(mount, point, number=1):
    load = Load(mount, durable=False)
    load.prepare()
    mount.umount()
    if not crash(mount, load, point, number):
        assert number > 1, f"the load does not pass {point}"
        return
    mount.mount(*mount.options)
    check_twice(mount, load)


@pytest.mark.parametrize("point", [point for point in LOADED if point in SHORT])
def test_killed_at(mount, point):
    """Everything that was acknowledged is there, what was under way is done or not, fsck is clean."""
    kill_at(mount, point)


@pytest.mark.endurance
@pytest.mark.long
@pytest.mark.parametrize("number", PASSES)
@pytest.mark.parametrize("point", LOADED)
@pytest.mark.parametrize("passthrough", ["auto", "off"])
def test_killed_at_long(unmounted, point, number, passthrough):
    """Each point, at several passings, with and without passthrough."""
    kill_at(unmounted.mount(f"passthrough={passthrough}"), point, number)


@pytest.mark.parametrize("point", MIGRATE)
def test_killed_while_migrating(mount, point):
    """A store of an older version is of the old or of the new one, and comes forward at the next mount."""
    content = random_bytes(6, 2 * MIB)
    write_file(mount.dir / "kept.bin", content)
    mount.umount()
    with sqlite3.connect(mount.store / "weightfs.db") as db:
        wanted = db.execute("PRAGMA user_version").fetchone()[0]
        db.executescript("DROP TABLE IF EXISTS damage; DROP TABLE tensor; PRAGMA user_version = 3")
    db.close()
    os.environ["WEIGHTFS_CRASH_AT"] = point
    try:
        assert mount.run("mount", mount.store, mount.dir, check=False).returncode != 0
    finally:
        del os.environ["WEIGHTFS_CRASH_AT"]
    mount.mount()
    assert read_file(mount.dir / "kept.bin") == content
    assert mount.status()["format_version"] == wanted


@pytest.fixture(params=disks())
def power(request, unmounted, tmp_path):
    found = Power(unmounted, Disk(request.param, tmp_path, 512 * MIB))
    found.boot()
    yield found
    found.end()


@pytest.mark.root_only
@pytest.mark.endurance
@pytest.mark.long
@pytest.mark.parametrize("point", LOADED)
def test_power_cut_at(power, point):
    """At each point the power goes: what was made durable is there, nothing is silently wrong."""
    mount, load = power.mount, Load(power.mount, durable=True)
    load.prepare()
    mount.umount()
    # Where files share blocks a copy is the disk's, and nothing is left to be repacked.
    passes = power.disk.kind != "xfs" or point.split("-")[0] not in ("clone", "copy", "repack")
    assert crash(mount, load, point, 1) == passes, f"passing {point}"
    power.disk.cut()
    power.restore()
    check_twice(mount, load)


def test_every_point_is_named_once():
    """What the tests go by is what is there."""
    assert set(SHORT) <= set(LOADED)
    text = "".join(path.read_text() for path in (ROOT / "lib").glob("*.c"))
    assert all(text.count(f'"{point}"') == 1 for point in POINTS)
