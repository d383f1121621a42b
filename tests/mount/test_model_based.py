"""Random operations on the mount and on a plain directory: the same answer to each, the same tree after each.

hypothesis chooses them, and makes a sequence that fails as short as it can. What a plain directory does not have, the
gate and what docs/semantics.md says is different, is foreseen here.

    WEIGHTFS_MODEL_SEED      seed of the long form (default: of the clock; it is printed)
    WEIGHTFS_MODEL_EXAMPLES  sequences of the long form (default 60)
    WEIGHTFS_MODEL_STEPS     operations in each of them (default 100)
    WEIGHTFS_MODEL_SHRINK    0: show what failed as it was found
"""

import ctypes
import errno
import mmap
import os
import pathlib
import shutil
import tempfile
import time

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from support import twins
from support.files import (FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, RENAME_EXCHANGE,
                           RENAME_NOREPLACE, fallocate, link_fd, pwrite_all, read_file, renameat2, write_all)
from support.mounts import POLL_SECONDS, Mount
from support.twins import Handle, Mapping, is_gated, outcome

SEED = int(os.environ.get("WEIGHTFS_MODEL_SEED", time.time_ns() // 10**6 % 10**9))
EXAMPLES = int(os.environ.get("WEIGHTFS_MODEL_EXAMPLES", "60"))
STEPS = int(os.environ.get("WEIGHTFS_MODEL_STEPS", "100"))
SHRINK = os.environ.get("WEIGHTFS_MODEL_SHRINK", "1") != "0"
LIMIT = 900 + EXAMPLES * STEPS // 4

POOL = twins.pool()
SHARDS = [content for content in POOL.values() if twins.verdict(content) == "valid"]
DIRECTORIES = ["d", "d/e", "f"]
LEAVES = ["a", "b", "c", "model.safetensors", "s.safetensors", ".tmp"]
PATHS = LEAVES + [f"{directory}/{leaf}" for directory in ("d", "d/e") for leaf in ("a", "c", "s.safetensors")]
OFFSETS = [0, 1, 7, 8, 100, 4095, 4096, 20_000, 65_535, 65_536, 65_537, 131_072, 200_001, 300_000]
LENGTHS = [1, 8, 100, 4096, 5000, 65_536, 100_000]
MODES = [0, FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, FALLOC_ZERO_RANGE,
         FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE]
ACCESS = [os.O_RDONLY, os.O_WRONLY, os.O_RDWR]
EXTRA = [0, 0, os.O_TRUNC, os.O_APPEND, os.O_EXCL, os.O_NOFOLLOW, os.O_TRUNC | os.O_APPEND, os.O_SYNC]
RESERVED = 2 * POLL_SECONDS

path = st.sampled_from(PATHS)
any_path = st.sampled_from(PATHS + DIRECTORIES)
content = st.sampled_from(list(POOL))
offset = st.sampled_from(OFFSETS)
length = st.sampled_from(LENGTHS)
index = st.integers(0, 5)


class Directories(RuleBasedStateMachine):
    """`environment` is set by the test: binary, base directory, watchdog, seconds, options."""

    environment = None

    def __init__(self):
        super().__init__()
        weightfs, base, watchdog, seconds, options = self.environment
        self.base = pathlib.Path(tempfile.mkdtemp(dir=base))
        self.theirs = self.base / "plain"
        self.theirs.mkdir()
        self.m = Mount(weightfs, self.base, watchdog, seconds)
        self.m.mount(*options)
        self.direct = os.geteuid() == 0 and "passthrough=off" not in options
        self.handles, self.mappings = [], []
        self.untimed = set()  # inodes that a mapping wrote: nothing says when

    @property
    def ours(self):
        return self.m.dir

    # ---- both sides ----

    def both(self, function, *args, may=()):
        """The answer of the plain side, or None if ours is an errno of `may`: then the plain side does not do it."""
        mine = outcome(function, self.ours, *args)
        if mine in [("errno", name) for name in may]:
            return None
        other = outcome(function, self.theirs, *args)
        assert mine == other, f"{function.__name__}{shown(args)}: {shown([mine])}, a plain directory: {shown([other])}"
        return other

    def by_handle(self, handle, function, *args, may=()):
        """As both(), by a descriptor of each side."""
        may = list(may) + (["EPERM"] if handle.cloned else [])
        mine = outcome(function, handle.fds[0], *args)
        if mine in [("errno", name) for name in may]:
            return None
        other = outcome(function, handle.fds[1], *args)
        assert mine == other, f"{function.__name__}{shown(args)} of {handle.path}: {shown([mine])}, not {shown([other])}"
        return other

    def busy(self):
        """ETXTBSY is allowed where shared bytes are in use (docs/semantics.md)."""
        return ["ETXTBSY"] if self.direct and (self.handles or self.mappings) else []

    def patiently(self, function, *args):
        """As both(); what nobody uses any more is let go of by the kernel a moment after the close."""
        if not self.busy():
            deadline = time.monotonic() + 5
            while (mine := outcome(function, self.ours, *args)) == ("errno", "ETXTBSY"):
                assert time.monotonic() < deadline, f"{function.__name__}{shown(args)}: ETXTBSY, and nothing is open"
                time.sleep(POLL_SECONDS)
            other = outcome(function, self.theirs, *args)
            assert mine == other, f"{function.__name__}{shown(args)}: {shown([mine])}, not {shown([other])}"
            return other
        return self.both(function, *args, may=self.busy())

    # ---- the gate ----

    def verdict_of(self, relative):
        return twins.verdict(read_file(self.theirs / relative), SHARDS)

    def is_refused(self, source, target, target_known):
        """Would the gate refuse the regular file `source` the name `target`?"""
        if not is_gated(target.name) or not source.is_file() or source.is_symlink():
            return False
        if is_gated(source.name):
            if not target_known or not target.is_file() or target.is_symlink() or os.path.samefile(source, target):
                return False
            if twins.verdict(read_file(target)) != "valid":
                return False
        return twins.verdict(read_file(source), SHARDS) in ("incomplete", "wrong", "unknown")

    def foresee_rename(self, source, target, flags):
        old, new = self.theirs / source, self.theirs / target
        if not os.path.lexists(old):
            return False
        there = os.path.lexists(new)
        refused = self.is_refused(old, new, there)
        if flags & RENAME_EXCHANGE and there:
            refused = refused or self.is_refused(new, old, True)
        return refused

    def foresee_link(self, source, target):
        old = self.theirs / source
        if not os.path.lexists(old) or not old.is_file() or old.is_symlink() or not is_gated(os.path.basename(target)):
            return False
        if any(is_gated(os.path.basename(name)) for name in twins.names_of(self.theirs, os.lstat(old).st_ino)):
            return False
        return self.verdict_of(source) in ("incomplete", "wrong", "unknown")

    def gated(self, refused, function, *args):
        """As both(); EBADMSG exactly where it is foreseen, unless a plain directory fails, too."""
        mine = outcome(function, self.ours, *args)
        if mine == ("errno", "EBADMSG"):
            assert refused, f"{function.__name__}{args}: EBADMSG, which was not foreseen"
            return
        other = outcome(function, self.theirs, *args)
        assert mine == other, f"{function.__name__}{args}: {mine}, a plain directory: {other}"
        assert not refused or mine is not None, f"{function.__name__}{args}: passed, and was to be refused"

    # ---- descriptors ----

    @precondition(lambda self: len(self.handles) < 5)
    @rule(path=path, access=st.sampled_from(ACCESS), extra=st.sampled_from(EXTRA), create=st.booleans())
    def open(self, path, access, extra, create):
        flags = access | extra | (os.O_CREAT if create else 0)
        there = (self.theirs / path).exists()
        fds = []

        def open_one(root):
            fds.append(os.open(root / path, flags, 0o640))

        if self.patiently(open_one) is None and len(fds) == 2:
            handle = Handle(*fds, path, flags)
            handle.wrote = bool(flags & os.O_TRUNC and there and handle.writes)
            handle.judged = handle.wrote
            self.handles.append(handle)
        else:
            for fd in fds:
                os.close(fd)

    @precondition(lambda self: len(self.handles) < 5)
    @rule(directory=st.sampled_from([".", "d"]), content=content, name=path)
    def tmpfile(self, directory, content, name):
        """O_TMPFILE, linked once it is written."""
        fds = []

        def open_one(root):
            fds.append(os.open(root / directory, os.O_TMPFILE | os.O_RDWR, 0o600))

        if self.both(open_one) is not None:
            return
        handle = Handle(*fds, name, os.O_RDWR)
        self.handles.append(handle)
        self.by_handle(handle, write_all, POOL[content])
        self.written(handle)
        refused = is_gated(os.path.basename(name)) and twins.verdict(POOL[content], SHARDS) not in ("valid", "opaque")

        def link_one(root):
            link_fd(handle.fds[0 if root == self.ours else 1], root / name)

        self.gated(refused, link_one)

    @precondition(lambda self: 0 < len(self.handles) < 6)
    @rule(index=index)
    def dup(self, index):
        handle = self.pick(index)
        copy = Handle(*(os.dup(fd) for fd in handle.fds), handle.path, handle.flags)
        copy.wrote, copy.cloned, copy.judged = handle.wrote, handle.cloned, True
        handle.judged = True
        self.handles.append(copy)

    def pick(self, index):
        return self.handles[index % len(self.handles)]

    def written(self, handle):
        inode = os.fstat(handle.fds[1]).st_ino
        for other in self.handles:
            if other is not handle and os.fstat(other.fds[1]).st_ino == inode:
                other.judged = handle.judged = True
        handle.wrote = True

    @precondition(lambda self: self.handles)
    @rule(index=index, content=content)
    def write(self, index, content):
        handle = self.pick(index)
        if POOL[content] and self.by_handle(handle, os.write, POOL[content], may=self.busy()) is not None:
            self.written(handle)

    @precondition(lambda self: self.handles)
    @rule(index=index, content=content, offset=offset, length=length)
    def pwrite(self, index, content, offset, length):
        handle = self.pick(index)
        data = POOL[content][:length]
        if data and self.by_handle(handle, os.pwrite, data, offset, may=self.busy()) is not None:
            self.written(handle)

    @precondition(lambda self: self.handles)
    @rule(index=index, offset=offset, length=length)
    def pread(self, index, offset, length):
        self.by_handle(self.pick(index), os.pread, length, offset)

    @precondition(lambda self: self.handles)
    @rule(index=index, length=length)
    def read(self, index, length):
        self.by_handle(self.pick(index), os.read, length)

    @precondition(lambda self: self.handles)
    @rule(index=index, offset=offset, whence=st.sampled_from([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END]))
    def seek(self, index, offset, whence):
        self.by_handle(self.pick(index), os.lseek, offset, whence)

    @precondition(lambda self: self.handles)
    @rule(index=index)
    def seek_holes(self, index):
        """What is called a hole reads as zeros; what is beyond the end is ENXIO."""
        handle = self.pick(index)
        ours, theirs = handle.fds
        size = os.fstat(theirs).st_size
        before = os.lseek(theirs, 0, os.SEEK_CUR)
        for begin, end in twins.holes(ours, size):
            if handle.reads:
                assert os.pread(ours, end - begin, begin) == bytes(end - begin)
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            assert outcome(os.lseek, ours, size, whence) == ("errno", "ENXIO")
        os.lseek(ours, before, os.SEEK_SET)

    @precondition(lambda self: self.handles)
    @rule(index=index, size=offset)
    def ftruncate(self, index, size):
        handle = self.pick(index)
        self.by_handle(handle, os.ftruncate, size, may=self.busy())
        self.written(handle)
        handle.judged = True  # the same size is no change of the bytes

    @precondition(lambda self: self.handles)
    @rule(index=index, mode=st.sampled_from(MODES), offset=offset, length=length)
    def fallocate(self, index, mode, offset, length):
        handle = self.pick(index)
        self.by_handle(handle, fallocate, mode, offset, length, may=self.busy())
        self.written(handle)
        handle.judged = True

    @precondition(lambda self: self.handles)
    @rule(index=index, only_data=st.booleans())
    def fsync(self, index, only_data):
        self.by_handle(self.pick(index), os.fdatasync if only_data else os.fsync)

    @precondition(lambda self: self.handles)
    @rule(index=index)
    def close(self, index):
        self.close_handle(self.handles.pop(index % len(self.handles)))

    def close_handle(self, handle):
        """EBADMSG exactly where a wrong file is left under a shard's name."""
        info = os.fstat(handle.fds[1])
        names = twins.names_of(self.theirs, info.st_ino)
        verdict = self.verdict_of(names[0]) if any(is_gated(os.path.basename(n)) for n in names) else "opaque"
        mine = outcome(os.close, handle.fds[0])
        os.close(handle.fds[1])
        where = f"close of {handle.path} ({names}, {verdict})"
        if mine is None:
            assert not (verdict == "wrong" and handle.writes and handle.wrote and not handle.judged), f"{where}: passed"
        else:
            assert mine == ("errno", "EBADMSG"), f"{where}: {mine}"
            assert handle.writes and verdict in ("wrong", "unknown"), f"{where}: refused"

    @precondition(lambda self: self.handles)
    @rule(source=index, onto=index, at=offset, to=offset, length=length)
    def copy_range(self, source, onto, at, to, length):
        """Between two open files, a part."""
        source, target = self.pick(source), self.pick(onto)
        answers = []
        for a, b in zip(source.fds, target.fds):
            answers.append(outcome(os.copy_file_range, a, b, length, at, to))
            if len(answers) == 1 and answers[0] in [("errno", "ETXTBSY"), ("errno", "EPERM")] and self.direct:
                return
        assert answers[0] == answers[1], f"copy_file_range({source.path}, {target.path}, {length}, {at}, {to}): {answers}"
        if isinstance(answers[1], int) and answers[1] > 0:
            self.written(target)
            if at == 0 and to == 0 and length >= os.fstat(source.fds[1]).st_size:
                self.mark_cloned(target)

    def mark_cloned(self, handle):
        inode = os.fstat(handle.fds[1]).st_ino
        for other in self.handles:
            if os.fstat(other.fds[1]).st_ino == inode:
                other.cloned = self.direct

    # ---- mappings ----

    @precondition(lambda self: self.handles and len(self.mappings) < 3)
    @rule(index=index, writable=st.booleans())
    def map(self, index, writable):
        handle = self.pick(index)
        size = os.fstat(handle.fds[1]).st_size
        if size and handle.reads and (handle.writes or not writable) and not handle.cloned:
            self.mappings.append(Mapping(handle, size, writable))

    def mapped(self, index):
        """A mapping and how much of it is in the file now."""
        mapping = self.mappings[index % len(self.mappings)]
        inodes = {os.fstat(handle.fds[1]).st_ino: os.fstat(handle.fds[1]).st_size for handle in self.handles}
        size = inodes.get(mapping.inode)
        if size is None:
            names = twins.names_of(self.theirs, mapping.inode)
            size = os.lstat(self.theirs / names[0]).st_size if names else 0
        return mapping, min(size, mapping.size)

    @precondition(lambda self: self.mappings)
    @rule(index=index, offset=offset, length=length)
    def map_read(self, index, offset, length):
        mapping, size = self.mapped(index)
        ours, theirs = (m[offset:min(offset + length, size)] for m in mapping.maps)
        assert ours == theirs, f"mapping of {mapping.path} at {offset}"

    @precondition(lambda self: self.mappings)
    @rule(index=index, offset=offset, byte=st.integers(0, 255), sync=st.booleans())
    def map_write(self, index, offset, byte, sync):
        mapping, size = self.mapped(index)
        if not mapping.writable or offset >= size:
            return
        for m in mapping.maps:
            m[offset:min(offset + 100, size)] = bytes([byte]) * (min(offset + 100, size) - offset)
            if sync:
                m.flush()
        self.untimed.add(mapping.inode)
        for handle in self.handles:
            if os.fstat(handle.fds[1]).st_ino == mapping.inode:
                handle.wrote = handle.judged = True

    @precondition(lambda self: self.mappings)
    @rule(index=index)
    def unmap(self, index):
        self.mappings.pop(index % len(self.mappings)).close()

    # ---- names ----

    @rule(path=path, content=content)
    def put(self, path, content):
        """open(O_TRUNC), write, close."""
        def put_one(root):
            fd = os.open(root / path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            handle_fds.append(fd)
            write_all(fd, POOL[content])

        handle_fds = []
        self.patiently(put_one)
        if len(handle_fds) == 2:
            handle = Handle(*handle_fds, path, os.O_WRONLY)
            self.handles.append(handle)
            self.written(handle)
            self.handles.remove(handle)
            handle.judged = handle.judged or not POOL[content]
            self.close_handle(handle)
        else:
            for fd in handle_fds:
                os.close(fd)

    @rule(path=path, size=offset)
    def truncate(self, path, size):
        self.patiently(lambda root: os.truncate(root / path, size))

    @rule(source=any_path, new=any_path, flags=st.sampled_from([0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE]))
    def rename(self, source, new, flags):
        self.gated(self.foresee_rename(source, new, flags),
                   lambda root: renameat2(root / source, root / new, flags))

    @rule(source=path, new=path)
    def link(self, source, new):
        self.gated(self.foresee_link(source, new),
                   lambda root: os.link(root / source, root / new, follow_symlinks=False))

    @rule(path=any_path)
    def unlink(self, path):
        self.both(lambda root: os.unlink(root / path))

    @rule(path=st.sampled_from(DIRECTORIES), mode=st.sampled_from([0o755, 0o700, 0o2775]))
    def mkdir(self, path, mode):
        self.both(lambda root: os.mkdir(root / path, mode))

    @rule(path=any_path)
    def rmdir(self, path):
        self.both(lambda root: os.rmdir(root / path))

    @rule(path=path, text=st.sampled_from(["a", "e/../a", "s.safetensors", "d", "nowhere", "c"]))
    def symlink(self, path, text):
        self.both(lambda root: os.symlink(text, root / path))

    @rule(path=any_path, mode=st.sampled_from([0o600, 0o644, 0o755, 0o4711]))
    def chmod(self, path, mode):
        self.both(lambda root: os.chmod(root / path, mode))

    @rule(path=any_path, uid=st.sampled_from([-1, 0, 1000, 1001]), gid=st.sampled_from([-1, 0, 1000]))
    def chown(self, path, uid, gid):
        self.both(lambda root: os.chown(root / path, uid, gid, follow_symlinks=False))

    @rule(path=any_path, seconds=st.integers(1, 9))
    def utime(self, path, seconds):
        times = (seconds * 10**9 + 1, 10**18 + seconds * 10**9 + seconds)
        self.both(lambda root: os.utime(root / path, ns=times, follow_symlinks=False))

    @rule(path=any_path, name=st.sampled_from(["user.one", "user.two"]), value=st.sampled_from([b"", b"1", b"v" * 300]),
          flags=st.sampled_from([0, os.XATTR_CREATE, os.XATTR_REPLACE]))
    def setxattr(self, path, name, value, flags):
        self.both(lambda root: os.setxattr(root / path, name, value, flags))

    @rule(path=any_path, name=st.sampled_from(["user.one", "user.two"]))
    def removexattr(self, path, name):
        self.both(lambda root: os.removexattr(root / path, name))

    @rule(path=any_path)
    def listed(self, path):
        self.both(lambda root: sorted((e.name, e.is_dir(follow_symlinks=False), e.is_symlink())
                                      for e in os.scandir(root / path)))

    @rule(source=path, new=path)
    def clone(self, source, new):
        """cp: the whole of a file by copy_file_range into a new one."""
        def copy_one(root):
            a = os.open(root / source, os.O_RDONLY)
            try:
                b = os.open(root / new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
                fds.append(b)
                done = 0
                while n := os.copy_file_range(a, b, 2**62):
                    done += n
                return done
            finally:
                os.close(a)

        fds = []
        if self.direct:
            # The two could be one file, and EPERM of what was cloned into is not told from a failure.
            fine = self.both(copy_one, may=[*self.busy(), "EPERM"])
        else:
            fine = self.both(copy_one)
        if len(fds) == 2:
            handle = Handle(*fds, new, os.O_WRONLY)
            handle.judged = handle.wrote = True
            self.close_handle(handle)
        elif fds:
            os.close(fds[0])
            assert fine is None
            self.follow(new)

    def follow(self, path):
        """O_TRUNC went through on ours, and the copy did not: the plain side does the same."""
        os.truncate(self.theirs / path, 0)
        os.chmod(self.theirs / path, os.stat(self.ours / path).st_mode & 0o7777)

    # ---- the life of the store ----

    @rule()
    def seal_beside(self):
        """What nobody has open is sealed while the rest stays open."""
        time.sleep(0.45)
        self.compare()

    @rule()
    def seal_all(self):
        self.let_go()
        self.m.wait_sealed()
        self.compare()

    @rule()
    def remount(self):
        self.let_go()
        self.m.remount()
        self.compare()

    @rule()
    def kill(self):
        """What was acknowledged is there; mappings are written back first, as msync(2) asks for it."""
        for mapping in self.mappings:
            for m in mapping.maps if mapping.writable else []:
                m.flush()
        self.m.kill()
        for mapping in self.mappings:
            mapping.close()
        for handle in self.handles:
            for fd in handle.fds:
                outcome(os.close, fd)
        self.handles, self.mappings = [], []
        self.m.mount(*self.m.options)
        self.compare()

    @rule()
    def drop_caches(self):
        """The kernel forgets pages, names and attributes."""
        if os.geteuid() == 0:
            pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
        for name in twins.contents(self.theirs):
            fd = os.open(self.ours / name, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)

    @rule(path=path)
    def repack(self, path):
        if (self.theirs / path).is_file():
            self.m.run("repack", self.ours / path, check=False)

    def let_go(self):
        while self.mappings:
            self.mappings.pop().close()
        while self.handles:
            self.close_handle(self.handles.pop())

    @rule()
    def compare(self):
        """Names, attributes, links, xattrs and every byte."""
        self.check_names()
        ours, theirs = twins.contents(self.ours), twins.contents(self.theirs)
        assert ours == theirs, sorted(name for name in ours if ours[name] != theirs.get(name))
        names = twins.walk(self.theirs)
        for name in names:
            assert twins.xattrs(self.ours / name) == twins.xattrs(self.theirs / name), name
        assert twins.groups(self.ours, names) == twins.groups(self.theirs, names)

    def check_names(self):
        names = twins.walk(self.theirs)
        assert twins.walk(self.ours) == names
        untimed = {name for name in names if os.lstat(self.theirs / name).st_ino in self.untimed}
        for name in names:
            ours, theirs = (twins.facts(root, name, untimed) for root in (self.ours, self.theirs))
            assert ours == theirs, f"{name}: {ours}, in the plain directory {theirs}"

    def check_invariants(self, *args, **kwargs):
        super().check_invariants(*args, **kwargs)
        self.check_names()

    def teardown(self):
        try:
            if self.m.pid:
                self.let_go()
                self.m.wait_sealed()
                self.compare()
                self.m.remount()
                self.compare()
                self.m.umount()
                self.m.assert_clean()
        finally:
            for mapping in self.mappings:
                mapping.close()
            for handle in self.handles:
                for fd in handle.fds:
                    outcome(os.close, fd)
            self.m.end()
            shutil.rmtree(self.base, ignore_errors=True)


def shown(values):
    return tuple(f"<{len(v)} bytes>" if isinstance(v, bytes) and len(v) > 20 else v for v in values)


def run(kind, weightfs, base, watchdog, options, settings, seed=None):
    class Machine(kind):
        environment = (weightfs, base, watchdog, LIMIT, options)

    machine = hypothesis.seed(seed)(Machine) if seed is not None else Machine
    run_state_machine_as_test(machine, settings=settings)


def settings_of(examples, steps, **more):
    phases = [hypothesis.Phase.generate] + [hypothesis.Phase.shrink] * SHRINK
    return hypothesis.settings(max_examples=examples, stateful_step_count=steps, deadline=None, database=None,
                               phases=phases, report_multiple_bugs=False, print_blob=False,
                               suppress_health_check=list(hypothesis.HealthCheck), **more)


BOTH = pytest.mark.parametrize("options", [(), ("passthrough=off",)], ids=["default", "passthrough=off"])


@BOTH
def test_as_a_plain_directory(weightfs, watchdog, tmp_path, options):
    """A few sequences, the same ones each time."""
    run(Directories, weightfs, tmp_path, watchdog, options, settings_of(5, 30, derandomize=True))


@pytest.mark.endurance
@pytest.mark.long
@pytest.mark.timeout(LIMIT)
@BOTH
def test_as_a_plain_directory_for_long(weightfs, watchdog, tmp_path, options):
    """Many long sequences of a new seed."""
    print(f"WEIGHTFS_MODEL_SEED={SEED}, {EXAMPLES} sequences of {STEPS} operations")
    run(Directories, weightfs, tmp_path, watchdog, options, settings_of(EXAMPLES, STEPS), SEED)
