"""The command: what it prints, as text and JSON, its errors and exit statuses."""

import errno
import json
import os
import re
import signal
import sqlite3
import struct
import subprocess
import time
from pathlib import Path

import pytest

from support import shards
from support.files import MIB, errno_of, random_bytes, read_file, write_file
from support.mounts import is_running, wait_for

COMMANDS = ["mount", "umount", "status", "ls", "tensors", "cat", "put", "shard", "fsck", "verify", "repack", "version"]
STATUS_KEYS = {"store", "mounted", "mountpoint", "format_version", "files", "directories", "dirty", "sealed",
               "incomplete", "wrong", "damaged", "damaged_objects", "warned", "logical_bytes", "stored_bytes", "saved_bytes",
               "dirty_bytes", "pending_bytes", "shared_bytes", "copied_bytes", "disk_bytes", "objects", "manifests", "data_files", "last_recovery", "reports"}


def assert_error(done, *words, status=1):
    """An error: its exit status, nothing on stdout, and what and where on stderr."""
    assert done.returncode == status, (done.stdout, done.stderr)
    assert done.stdout == ""
    assert done.stderr.startswith("weightfs"), done.stderr
    for word in words:
        assert str(word) in done.stderr, (word, done.stderr)


# ---- usage ----

@pytest.fixture
def run(weightfs):
    def run(*args, **kwargs):
        return subprocess.run([weightfs, *args], capture_output=True, text=True, timeout=240, **kwargs)
    return run


@pytest.mark.parametrize("name", COMMANDS)
def test_help(run, name):
    """--help of each command: on stdout, status 0, from "usage:" on, with every long option that it takes."""
    done = run(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: weightfs {name}")
    if name in ("status", "ls", "fsck", "version"):
        assert "--json" in done.stdout


def test_help_names_all_commands(run):
    done = run("--help")
    assert done.returncode == 0
    for name in COMMANDS:
        assert re.search(rf"^\s+{name}\s", done.stdout, re.M), name


@pytest.mark.parametrize("args", [[], ["no-such-command"], ["mount"], ["mount", "store"], ["umount"], ["status"],
                                  ["status", "a", "b"], ["fsck"], ["ls"], ["status", "--no-such-option", "x"],
                                  ["mount", "store", "dir", "-o", "validate=maybe"],
                                  ["mount", "store", "dir", "-o", "no_such_option"]],
                         ids=lambda args: " ".join(args) or "nothing")
def test_wrong_usage(run, tmp_path, args):
    """Wrong usage: status 2, help named on stderr, and nothing is made."""
    done = run(*args, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stdout == "" and done.stderr
    assert os.listdir(tmp_path) == []


def test_version(run):
    done = run("version")
    assert re.match(r"weightfs \d+\.\d+", done.stdout)
    numbers = json.loads(run("version", "--json").stdout)
    assert isinstance(numbers, dict) and numbers


# ---- mount and umount ----

def test_mount_makes_the_store(unmounted):
    """A missing store is made, an empty directory becomes one."""
    unmounted.mount()
    unmounted.umount()
    assert (unmounted.store / "weightfs.db").exists()
    other = unmounted.store.with_name("empty")
    other.mkdir()
    unmounted.store = other
    unmounted.mount()
    assert (other / "weightfs.db").exists()


def test_database_is_marked(mount):
    """application_id and user_version are those of lib/schema.sql; sqlite3 may read beside the mount."""
    with sqlite3.connect(f"file:{mount.store / 'weightfs.db'}?mode=ro", uri=True) as db:
        assert db.execute("PRAGMA application_id").fetchone() == (0x57744653,)
        assert db.execute("PRAGMA user_version").fetchone() == (mount.status()["format_version"],)


def test_locked_store(mount, tmp_path):
    """A store that is mounted is not mounted twice; the message names the process that has it."""
    other = tmp_path / "other"
    other.mkdir()
    assert_error(mount.run("mount", mount.store, other, check=False), mount.store, mount.pid)
    assert not os.path.ismount(other)
    write_file(mount.dir / "still-works", b"x")


def test_no_store(unmounted, tmp_path):
    """A directory with other things in it is no store, and stays as it is."""
    unmounted.store.mkdir()
    (unmounted.store / "thesis.txt").write_text("mine")
    assert_error(unmounted.run("mount", unmounted.store, unmounted.dir, check=False), unmounted.store)
    assert os.listdir(unmounted.store) == ["thesis.txt"]
    assert not unmounted.mounted
    for command in ("status", "fsck", "ls"):
        assert_error(unmounted.run(command, unmounted.store, check=False), unmounted.store)


def test_store_is_a_file(unmounted):
    unmounted.store.write_text("x")
    assert_error(unmounted.run("mount", unmounted.store, unmounted.dir, check=False), unmounted.store)


@pytest.mark.leaves_damage
def test_no_database(unmounted):
    """weightfs.db that is no database, or another program's, is refused."""
    unmounted.store.mkdir()
    path = unmounted.store / "weightfs.db"
    path.write_bytes(b"no database at all" * 1000)
    assert_error(unmounted.run("mount", unmounted.store, unmounted.dir, check=False), unmounted.store)
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE mine (x)")
    before = path.read_bytes()
    assert_error(unmounted.run("mount", unmounted.store, unmounted.dir, check=False), unmounted.store)
    assert path.read_bytes() == before


@pytest.mark.leaves_damage
def test_unknown_version(mount):
    """A store of a later version is refused by every command, with both versions named; it is not touched."""
    mount.umount()
    with sqlite3.connect(mount.store / "weightfs.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    assert_error(mount.run("mount", mount.store, mount.dir, check=False), "99", mount.store)
    assert not mount.mounted
    for command in ("status", "ls", "fsck"):
        assert_error(mount.run(command, mount.store, check=False), "99")


def test_mountpoint_errors(unmounted, tmp_path):
    """A mount point that is missing, or a file, or below the store: refused, and nothing runs afterwards."""
    missing, a_file = tmp_path / "missing", tmp_path / "file"
    a_file.write_text("x")
    assert_error(unmounted.run("mount", unmounted.store, missing, check=False), missing)
    assert_error(unmounted.run("mount", unmounted.store, a_file, check=False), a_file)
    unmounted.mount()


def test_store_below_its_own_mount_point(unmounted):
    """A store under its own mount point would hang: refused."""
    store = unmounted.dir / "store"
    done = unmounted.run("mount", store, unmounted.dir, check=False)
    assert_error(done, unmounted.dir)
    assert not unmounted.mounted


def test_mounted_twice_in_one_place(mount, tmp_path):
    """Another store over a mount: either refused or done right; the first one stays whole."""
    write_file(mount.dir / "file", b"first")
    done = mount.run("mount", tmp_path / "second", mount.dir, check=False)
    if done.returncode == 0:
        mount.run("umount", mount.dir)
    assert read_file(mount.dir / "file") == b"first"


def test_umount_errors(mount, tmp_path):
    """Not a mount, a missing directory, a busy mount: said so, status 1."""
    plain = tmp_path / "plain"
    plain.mkdir()
    assert_error(mount.run("umount", plain, check=False), plain)
    assert_error(mount.run("umount", tmp_path / "missing", check=False), "missing")
    with open(mount.dir / "file", "w"):
        assert_error(mount.run("umount", mount.dir, check=False), "busy")
        assert mount.mounted


def test_umount_waits_for_the_store(mount):
    """When umount returns all is sealed, the lock is free, and no process is left."""
    write_file(mount.dir / "file", random_bytes(1, 20 * MIB))
    pid = mount.pid
    mount.run("umount", mount.dir)
    assert not is_running(pid)
    status = mount.status()
    assert (status["dirty"], status["mounted"]) == (0, False)


def test_umount_lazily(mount):
    """umount -l takes the mount from sight while files are open; the driver ends with the last of them."""
    with open(mount.dir / "file", "wb") as f:
        mount.run("umount", "-l", mount.dir)
        assert not mount.mounted
        f.write(b"late")
    wait_for(lambda: not is_running(mount.pid), 60, "the driver's end")
    mount.mount()
    assert read_file(mount.dir / "file") == b"late"


def test_fusermount3(mount):
    """fusermount3 -u ends it as well."""
    write_file(mount.dir / "file", b"x" * 100_000)
    subprocess.run(["fusermount3", "-u", mount.dir], check=True)
    wait_for(lambda: not is_running(mount.pid), 60, "the driver's end")
    assert mount.status()["dirty"] == 0


@pytest.mark.root_only
def test_umount_of_what_others_see(mount):
    """A mount that another namespace has a copy of is served on there; umount says what it waits for."""
    alone = ('findmnt -rn -t fuse.weightfs -o TARGET | grep -vxF "$0" | while read -r other; do umount -l "$other"; done; '
             "exec sleep 60")
    with subprocess.Popen(["unshare", "--mount", "sh", "-c", alone, mount.dir]) as other:
        wait_for(lambda: Path(f"/proc/{other.pid}/comm").read_text() == "sleep\n", 60, "the other namespace")
        with subprocess.Popen([mount.weightfs, "umount", mount.dir], stderr=subprocess.PIPE, text=True) as umount:
            said = umount.stderr.readline()
            other.kill()
            assert umount.wait(30) == 0
    assert f"process {mount.pid}" in said and "another mount namespace" in said


def test_mounted_again_at_once(mount):
    """A mount waits for the driver of an unmount by others, which has something to seal."""
    for number in range(3):
        write_file(mount.dir / f"{number}", random_bytes(number, 30 * MIB))
        driver = mount.pid
        subprocess.run(["fusermount3", "-u", mount.dir], check=True)
        mount.mount()
        assert mount.pid != driver and not is_running(driver)
        assert all(read_file(mount.dir / f"{n}") == random_bytes(n, 30 * MIB) for n in range(number + 1))


FSTAB = ["defaults", "rw", "suid,dev,exec", "nosuid,nodev,noexec", "sync", "dirsync", "async", "noatime", "nodiratime",
         "relatime,atime,diratime", "norelatime", "nostrictatime", "user,noauto,nofail,_netdev", "users", "owner",
         "x-systemd.automount,comment=mine", "default_permissions"]


@pytest.mark.parametrize("options", FSTAB)
def test_options_of_fstab(unmounted, options):
    """What mount(8) and fstab say of any file system is taken."""
    unmounted.mount(options)
    write_file(unmounted.dir / "file", b"x")


def test_foreground(unmounted, weightfs):
    """-f stays in the foreground and logs to stderr; SIGTERM ends it with status 0."""
    driver = subprocess.Popen([weightfs, "mount", unmounted.store, unmounted.dir, "-f"],
                              stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: unmounted.mounted or driver.poll() is not None, 60, "the mount")
        assert errno_of(write_file, unmounted.dir / "x.safetensors", b"\xff" * 100) != 0
        driver.terminate()
        _, log = driver.communicate(timeout=30)
    finally:
        driver.kill()
    assert driver.returncode == 0
    assert "header-too-large" in log and "x.safetensors" in log
    assert not unmounted.mounted


@pytest.mark.root_only
def test_told_to_end_in_use_and_over_another_mount(unmounted):
    """What is mounted below stays, and the log has nothing that is no trouble."""
    subprocess.run(["mount", "-t", "tmpfs", "below", unmounted.dir], check=True)
    try:
        below = os.stat(unmounted.dir).st_dev
        unmounted.mount()
        write_file(unmounted.dir / "file", random_bytes(1, MIB))
        with open(unmounted.dir / "file", "rb"):
            unmounted.signal(signal.SIGTERM)
        assert os.stat(unmounted.dir).st_dev == below
    finally:
        subprocess.run(["umount", unmounted.dir], check=True)
    assert "detaching it" in unmounted.log() and os.strerror(errno.EBADF) not in unmounted.log()


def test_fsname_is_not_that_of_another_driver(mount):
    """The type is fuse.weightfs, and the source is not "hf-mount", which transformers treats specially."""
    with open("/proc/self/mounts") as table:
        line = next(line for line in table if line.split()[1] == str(mount.dir))
    assert line.split()[2] == "fuse.weightfs"
    assert line.split()[0] != "hf-mount"


# ---- status ----

def test_status_json(mount):
    """All figures, by store and by mount point, mounted or not; they add up."""
    content = random_bytes(1, 5 * MIB)
    (mount.dir / "d").mkdir()
    write_file(mount.dir / "d" / "a", content)
    write_file(mount.dir / "b", content)
    settled = mount.wait_sealed()
    assert settled.keys() >= STATUS_KEYS
    assert settled["mounted"] is True and settled["mountpoint"] == str(mount.dir)
    assert settled["store"] == str(mount.store)
    assert (settled["files"], settled["directories"], settled["sealed"]) == (2, 2, 2)
    assert settled["logical_bytes"] == 2 * len(content)
    assert settled["stored_bytes"] == len(content)
    assert settled["saved_bytes"] == len(content)
    assert (settled["objects"], settled["manifests"], settled["data_files"]) == (1, 1, 1)
    assert 5 * MIB <= settled["disk_bytes"] < 8 * MIB
    assert json.loads(mount.run("status", mount.dir, "--json").stdout)["files"] == 2
    mount.umount()
    closed = mount.status()
    assert closed["mounted"] is False and closed["mountpoint"] is None
    assert {key: closed[key] for key in ("files", "stored_bytes", "objects")} == \
        {key: settled[key] for key in ("files", "stored_bytes", "objects")}


def test_status_of_dirty_files(mount):
    """A file that is open for writing is dirty, counted and listed."""
    with open(mount.dir / "growing", "wb", buffering=0) as f:
        f.write(b"x" * 100_000)
        status = mount.status()
        assert (status["dirty"], status["dirty_bytes"]) == (1, 100_000)
        assert status["reports"][0]["path"] == "/growing"
        assert status["reports"][0]["state"] == "dirty"
        assert status["stored_bytes"] == 100_000


def test_status_text(mount):
    """The text names what the JSON names: a bad file with path and reason."""
    errno_of(write_file, mount.dir / "bad.safetensors", b"\xff" * 100)
    mount.wait_sealed()
    text = mount.run("status", mount.store).stdout
    assert str(mount.store) in text and str(mount.dir) in text
    line = next(line for line in text.splitlines() if "bad.safetensors" in line)
    assert "wrong" in line and "header-too-large" in line


def test_status_of_what_is_no_store(run, tmp_path):
    assert_error(run("status", str(tmp_path / "missing")), "missing")
    assert_error(run("status", str(tmp_path)), tmp_path)


def test_status_while_the_driver_writes(mount):
    """status beside a busy mount always answers, with figures of one moment."""
    for number in range(20):
        write_file(mount.dir / f"{number}", random_bytes(number, 100_000))
        status = mount.status()
        assert status["files"] == number + 1 == status["dirty"] + status["sealed"]


def test_names_that_are_not_utf8(mount):
    """Odd names are printed so that JSON stays JSON and a line stays a line."""
    errno_of(write_file, os.fsencode(mount.dir) + b"/\xff\n\x1b.safetensors", b"\xff" * 100)
    report = mount.status()["reports"][0]
    assert report["path"].endswith(".safetensors")
    text = mount.run("status", mount.store).stdout + mount.run("ls", mount.dir).stdout
    assert "\x1b" not in text


# ---- ls ----

def test_ls_of_a_directory(mount):
    (mount.dir / "d").mkdir(mode=0o750)
    write_file(mount.dir / "d" / "b.txt", b"12345", 0o640)
    os.symlink("b.txt", mount.dir / "d" / "a")
    mount.wait_sealed()
    listing = mount.json("ls", mount.dir / "d")
    assert [(entry["name"], entry["type"]) for entry in listing["entries"]] == [("a", "symlink"), ("b.txt", "file")]
    assert listing["entries"][1]["size"] == 5
    assert listing["entries"][1]["state"] == "sealed"
    assert mount.json("ls", f"{mount.store}:/d")["entries"] == listing["entries"]
    assert mount.json("ls", f"{mount.dir}:/d")["entries"] == listing["entries"]
    text = mount.run("ls", mount.dir / "d").stdout
    assert "b.txt" in text and "0640" in text


def described(path):
    """What Python's safetensors says of a file: {name: (dtype, shape, bytes, offset)}."""
    safetensors = pytest.importorskip("safetensors")
    content = path.read_bytes()
    base = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:base])
    with safetensors.safe_open(path, framework="np") as f:
        return {name: (f.get_slice(name).get_dtype(), f.get_slice(name).get_shape(),
                       header[name]["data_offsets"][1] - header[name]["data_offsets"][0],
                       base + header[name]["data_offsets"][0])
                for name in f.keys()}


@pytest.mark.parametrize("sealed", [False, True])
def test_ls_of_a_shard(mount, sealed):
    """Each tensor with dtype, shape, bytes and offset as Python's safetensors reads them; metadata too."""
    numpy = pytest.importorskip("numpy")
    from safetensors.numpy import save_file
    path = mount.dir / "model.safetensors"
    tensors = {"w": numpy.ones((3, 4), "float32"), "s": numpy.ones((), "int64"), "e": numpy.ones((0, 7), "float16"),
               "ü/x": numpy.ones((2, 1, 5), "uint8")}
    save_file(tensors, path, metadata={"format": "pt"})
    if sealed:
        mount.wait_sealed()
    listing = mount.json("ls", path)
    seen = {t["name"]: (t["dtype"], t["shape"], t["bytes"], t["offset"]) for t in listing["tensors"]}
    assert seen == described(path)
    assert listing["metadata"] == {"format": "pt"}
    assert listing["format"] == "safetensors"
    digests = [t["digest"] for t in listing["tensors"]]
    assert all(re.fullmatch(r"xxh3:[0-9a-f]{32}", d) for d in digests) if sealed else digests == [None] * 4
    text = mount.run("ls", path).stdout
    for name, (dtype, _, _, _) in seen.items():
        assert any(name in line and dtype in line for line in text.splitlines())


def test_ls_shows_sharing(mount):
    """Equal tensors have equal digests; how often an object is named is counted."""
    same = random_bytes(1, 300_000)
    write_file(mount.dir / "a.safetensors", shards.shard({"x": same}))
    write_file(mount.dir / "b.safetensors", shards.shard({"y": same, "z": random_bytes(2, 300_000)}))
    mount.wait_sealed()
    first, = mount.json("ls", mount.dir / "a.safetensors")["tensors"]
    second, third = mount.json("ls", mount.dir / "b.safetensors")["tensors"]
    assert first["digest"] == second["digest"] != third["digest"]
    assert (first["shared"], third["shared"]) == (2, 1)


def test_ls_errors(mount):
    assert_error(mount.run("ls", mount.dir / "missing", check=False), "missing")
    assert_error(mount.run("ls", f"{mount.store}:/missing", check=False), "missing")


# ---- fsck ----

def test_fsck_clean(mount):
    """A clean store, mounted or not: status 0, no findings, and figures of what was looked at."""
    write_file(mount.dir / "file", random_bytes(1, MIB))
    mount.wait_sealed()
    assert mount.fsck()["findings"] == []
    mount.umount()
    found = mount.fsck()
    assert found["findings"] == []
    assert found["summary"]["inodes"] == 2
    assert mount.run("fsck", mount.store).stdout


@pytest.mark.leaves_damage
def test_fsck_finds_damage(mount):
    """One flipped byte: found with --bytes, named with its file, status 1."""
    write_file(mount.dir / "file", random_bytes(1, MIB))
    mount.umount()
    data = [path for path in (mount.store / "data").rglob("*") if path.is_file() and path.stat().st_size >= MIB]
    assert len(data) == 1
    with open(data[0], "r+b") as f:
        f.seek(500_000)
        byte = f.read(1)
        f.seek(500_000)
        f.write(bytes([byte[0] ^ 1]))
    done = mount.run("fsck", mount.store, "--bytes", "--json", check=False)
    assert done.returncode == 1
    findings = json.loads(done.stdout)["findings"]
    assert findings
    text = mount.run("fsck", mount.store, "--bytes", check=False)
    assert text.returncode == 1 and text.stdout


# ---- time ----

def test_commands_are_quick(mount):
    """status and mount answer at once on a small store; sealing takes no more than a second or so."""
    write_file(mount.dir / "file", random_bytes(1, MIB))
    begin = time.monotonic()
    mount.wait_sealed()
    assert time.monotonic() - begin < 5
    begin = time.monotonic()
    mount.remount()
    assert time.monotonic() - begin < 3


def test_verbose_log(unmounted):
    """-v logs by name what is sealed and how much of it is new, and what is given back."""
    unmounted.run("mount", unmounted.store, unmounted.dir, "-v")
    content = os.urandom(300_000)
    write_file(unmounted.dir / "first.bin", content)
    wait_for(lambda: "sealed /first.bin: 1 objects, 300000 bytes, of which 300000 are new" in unmounted.log(), 10,
             "the seal of the first file")
    write_file(unmounted.dir / "second.bin", content)
    wait_for(lambda: "sealed /second.bin: 1 objects, 300000 bytes, of which 0 are new" in unmounted.log(), 10,
             "the seal of the second file")
    wait_for(lambda: "gave back data/" in unmounted.log(), 60, "the second data file given back")
