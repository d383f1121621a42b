"""Somebody who may use a mount and hands it nonsense: the driver goes on, others' files stay as they are, fsck is clean.

    WEIGHTFS_USER_SEEDS    seeds, comma-separated (default: one)
    WEIGHTFS_USER_CALLS    calls of the long form for each seed (default 20000)
"""

import fcntl
import os
import random

import pytest

from support.files import in_child, random_bytes, read_file, write_file
from support.mounts import is_running
from support.shards import shard

SEEDS = [int(seed) for seed in os.environ.get("WEIGHTFS_USER_SEEDS", "1").split(",")]
CALLS = int(os.environ.get("WEIGHTFS_USER_CALLS", "20000"))
SHORT = 800
MOST = 1 << 20  # bytes that one call writes, and that a file is left with blocks for
# Nothing between 1 MiB and 16 GiB: a file with such holes is sealed, and its zeros hashed, which takes its time.
OFFSETS = [0, 1, 4095, 4096, 65_536, 1 << 20, 1 << 35, (1 << 40) + 3, 1 << 43, (1 << 62), (1 << 63) - 4096,
           (1 << 63) - 1]
REPACK = 0x80205701  # WFS_IOC_REPACK of fs/ioctl.h


class Nuisance:
    """Random calls, each with arguments that may mean nothing."""

    def __init__(self, root, seed):
        self.root, self.random = os.fsencode(root), random.Random(seed)
        self.calls = [getattr(self, name) for name in sorted(dir(self)) if name.startswith("do_")]

    def run(self, count):
        """Make `count` calls; how many of them succeeded."""
        good = 0
        for number in range(6):
            write_file(self.root + b"/f%d" % number, self.bytes())
        for name in (b"/d0", b"/d1", b"/d1/d2"):
            os.mkdir(self.root + name)
        for _ in range(count):
            try:
                self.random.choice(self.calls)()
                good += 1
            except (OSError, ValueError, OverflowError):
                pass  # ValueError: Python itself refuses a NUL
        return good

    # ---- arguments ----

    def name(self):
        r = self.random
        return r.choice([
            lambda: b"f%d" % r.randrange(6), lambda: b"d%d" % r.randrange(3), lambda: b"model.safetensors",
            lambda: b"f%d.safetensors" % r.randrange(3), lambda: r.randbytes(r.randrange(1, 300)).replace(b"/", b"%"),
            lambda: b".tensors", lambda: b".shards", lambda: b".tensors@x", lambda: b"..", lambda: b"",
            lambda: b"model.safetensors.index.json", lambda: b"n" * r.choice([254, 255, 256, 4096])])()

    def tensor(self):
        r = self.random
        return r.choice([b"a", b"%2F", b"%2f%25", b"%", b"%00", b"%zz", b"a%2", r.randbytes(r.randrange(1, 40)).replace(b"/", b""),
                         b"x" * 250, b"\xff\xfe"]) + r.choice([b".npy", b".safetensors", b".txt", b"", b".npy.npy"])

    def size(self):
        r = self.random
        return r.choice([b"1", b"5GB", b"0", b"-1", b"1e9", b"99999999999999999999", b"500MB", b" 1", b"1.5KiB", b"single",
                         r.randbytes(r.randrange(1, 20)).replace(b"/", b"")])

    def path(self):
        r = self.random
        base = self.root + r.choice([b"", b"/d0", b"/d1", b"/d1/d2", b"/m", b"/m"])
        return base + r.choice([
            lambda: b"/" + self.name(), lambda: b"/" + self.name(), lambda: b"/.tensors/" + self.tensor(),
            lambda: b"/.shards/" + self.size() + b"/" + self.name(), lambda: b"/.shards/" + self.size()])()

    def bytes(self):
        r = self.random
        return r.choice([b"", b"x", r.randbytes(100), shard({"a": b"abcd"}), shard({"a": b"abcd"})[:-2], b"\x93NUMPY\x01\0",
                         b"\xff" * 16, r.randbytes(70_000), b"{" * 1000])

    def opened(self, call, flags=None):
        flags = os.O_RDWR if flags is None else flags
        fd = os.open(self.path(), flags | os.O_NONBLOCK, self.random.choice([0o600, 0o644, 0, 0o7777]))
        try:
            return call(fd)
        finally:
            os.close(fd)

    # ---- calls ----

    def do_write(self):
        flags = os.O_RDWR | self.random.choice([0, os.O_CREAT, os.O_CREAT, os.O_CREAT | os.O_TRUNC, os.O_APPEND, os.O_CREAT | os.O_EXCL])
        self.opened(lambda fd: os.write(fd, self.bytes()), flags)

    def do_pwrite(self):
        self.opened(lambda fd: os.pwrite(fd, self.bytes(), self.random.choice(OFFSETS)))

    def do_pread(self):
        self.opened(lambda fd: os.pread(fd, self.random.choice([0, 1, MOST]), self.random.choice(OFFSETS)), os.O_RDONLY)

    def do_truncate(self):
        os.truncate(self.path(), self.random.choice(OFFSETS))

    def do_allocate(self):
        length = self.random.choice([0, 1, 4096, MOST])
        self.opened(lambda fd: os.posix_fallocate(fd, self.random.choice([0, 1, 4096]), length))

    def do_seek(self):
        self.opened(lambda fd: os.lseek(fd, self.random.choice(OFFSETS), self.random.randrange(6)), os.O_RDONLY)

    def do_copy(self):
        def copy(source):
            self.opened(lambda fd: os.copy_file_range(source, fd, self.random.choice([1, MOST]), self.random.choice(OFFSETS),
                                                      self.random.choice([0, 1, 4096])))
        self.opened(copy, os.O_RDONLY)

    def do_control(self):
        r = self.random
        number = r.choice([REPACK, REPACK ^ (1 << r.randrange(32)), r.randrange(1 << 32), 0x5401, 0x40086602])
        self.opened(lambda fd: fcntl.ioctl(fd, number, bytearray(r.randbytes(r.choice([0, 8, 32, 1024])))), os.O_RDONLY)

    def do_set_xattr(self):
        r = self.random
        name = r.choice([b"user.weightfs.max_shard_size", b"user.weightfs.error", b"user.weightfs.dtype", b"user.", b"user.x",
                         b"trusted.x", b"security.x", b"system.posix_acl_access", b"user." + r.randbytes(r.randrange(1, 260)), b"x"])
        value = r.choice([b"", self.size(), r.randbytes(100), r.randbytes(65_536), b"\0"])
        os.setxattr(self.path(), name, value, r.choice([0, 0, os.XATTR_CREATE, os.XATTR_REPLACE]))

    def do_look_at_xattrs(self):
        path = self.path()
        for name in os.listxattr(path):
            os.getxattr(path, name)
        os.removexattr(path, b"user.x")

    def do_mkdir(self):
        os.mkdir(self.path(), self.random.randrange(0o10000))

    def do_node(self):
        os.mknod(self.path(), self.random.choice([0o10600, 0o140600, 0o20600, 0o60600, 0o100600, 0o40700]), 0x105)

    def do_link(self):
        os.link(self.path(), self.path(), follow_symlinks=False)

    def do_symlink(self):
        os.symlink(self.random.choice([b"/etc/passwd", b"../..", b"x" * 4000, b"f0", self.random.randbytes(30)]), self.path())

    def do_rename(self):
        os.rename(self.path(), self.path())

    def do_unlink(self):
        os.unlink(self.path())

    def do_rmdir(self):
        os.rmdir(self.path())

    def do_chmod(self):
        os.chmod(self.path(), self.random.randrange(0o10000))

    def do_chown(self):
        os.chown(self.path(), self.random.choice([0, -1, 65_534, (1 << 32) - 2]), -1, follow_symlinks=False)

    def do_times(self):
        os.utime(self.path(), ns=(self.random.choice([0, -1, 1 << 62, -(1 << 62)]), self.random.choice([0, 1 << 61])),
                 follow_symlinks=False)

    def do_list(self):
        os.listdir(self.path())


def prepared(mount):
    """What belongs to the one who mounted, and a directory that everybody may write to."""
    theirs = mount.dir / "theirs"
    theirs.mkdir()
    write_file(theirs / "model.safetensors", shard({"a": random_bytes(1, 100_000)}))
    write_file(theirs / "file", random_bytes(2, 5000))
    os.chmod(theirs, 0o755)
    inbox = mount.dir / "inbox"
    (inbox / "m").mkdir(parents=True)
    write_file(inbox / "m" / "model.safetensors", shard({"a": random_bytes(3, 1000), "b": random_bytes(4, 100_000)}))
    for path in (mount.dir, inbox, inbox / "m"):
        os.chmod(path, 0o777)
    mount.wait_sealed()
    return theirs, inbox


def let_nonsense_in(mount, calls, seed, user=None):
    theirs, inbox = prepared(mount)
    before = {path: read_file(path) for path in theirs.iterdir()}
    here = os.open(".", os.O_RDONLY)
    os.chdir(inbox)  # the directories above are closed to others
    try:
        good = in_child(lambda: Nuisance(".", seed).run(calls), user=user)
    finally:
        os.fchdir(here)
        os.close(here)
    os.chmod(mount.dir, 0o777)  # his own ".." he may close
    assert good > calls / 50, "nearly nothing of it was allowed: this tests nothing"
    assert is_running(mount.pid)
    assert {path: read_file(path) for path in theirs.iterdir()} == before
    write_file(mount.dir / "after", b"still served")
    mount.remount()
    assert read_file(mount.dir / "after") == b"still served"
    assert {path: read_file(path) for path in theirs.iterdir()} == before


@pytest.mark.parametrize("passthrough", ["auto", "off"])
def test_nonsense(unmounted, passthrough):
    """Names, sizes, offsets, attributes and ioctls that mean nothing, from the one who mounted."""
    let_nonsense_in(unmounted.mount(f"passthrough={passthrough}"), SHORT, f"short-{passthrough}")


@pytest.mark.root_only
def test_nonsense_of_another_user(unmounted, other_user):
    """The same from another user, who is let in by allow_other."""
    let_nonsense_in(unmounted.mount("allow_other"), SHORT, "short-other", other_user)


@pytest.mark.endurance
@pytest.mark.long
@pytest.mark.parametrize("passthrough", ["auto", "off"])
@pytest.mark.parametrize("seed", SEEDS)
def test_much_nonsense(unmounted, seed, passthrough):
    let_nonsense_in(unmounted.mount(f"passthrough={passthrough}"), CALLS, f"{seed}-{passthrough}")
