"""Two roots, the mount and a plain directory, on which the same is done; and what the gate must say of it."""

import errno
import json
import mmap
import os
import stat
import struct

import safetensors

from support import shards
from support.files import sha256

GATED = ".safetensors"
OLD = 1_700_000_000 * 10**9  # times before this were set, times after it are the clock's
MAX_HEADER = 100_000_000


def is_gated(name):
    return name.endswith(GATED) and len(name) > len(GATED)


def verdict(content, prefixes=()):
    """opaque, valid, incomplete, wrong, or unknown (one of the last two). `prefixes`: shards that it may begin."""
    if not content or (len(content) < 1024 and content.startswith(b"version https://git-lfs.github.com/spec/")):
        return "opaque"
    if _loads(content):
        return "valid"
    if len(content) < 8:
        return "incomplete"
    length = struct.unpack("<Q", content[:8])[0]
    if length > MAX_HEADER:
        return "wrong"
    if any(whole.startswith(content) for whole in prefixes):
        return "incomplete"
    if 8 + length > len(content):
        return "unknown"
    return "incomplete" if _loads(content + bytes(_missing(content, length))) else "wrong"


def _loads(content):
    try:
        safetensors.deserialize(bytes(content))
        return True
    except Exception:
        return False


def _missing(content, length):
    """How many bytes the header promises that are not there."""
    try:
        header = json.loads(content[8:8 + length])
        end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        return min(max(0, 8 + length + end - len(content)), 1 << 24)
    except (ValueError, KeyError, TypeError, AttributeError):
        return 0


class Handle:
    """A descriptor on each side."""

    def __init__(self, ours, theirs, path, flags):
        self.fds = (ours, theirs)
        self.path = path
        self.flags = flags
        self.wrote = False    # by this descriptor, since the last close(2) that was not refused
        self.cloned = False   # a whole file was copied into it: see docs/semantics.md
        self.judged = False   # another writer of the file may have been told in its place

    @property
    def writes(self):
        return self.flags & os.O_ACCMODE != os.O_RDONLY

    @property
    def reads(self):
        return self.flags & os.O_ACCMODE != os.O_WRONLY


class Mapping:
    """A shared mapping on each side; its descriptors may be closed before it."""

    def __init__(self, handle, size, writable):
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self.inode = os.fstat(handle.fds[1]).st_ino
        self.size = size
        self.writable = writable
        self.path = handle.path
        self.maps = []
        try:
            for fd in handle.fds:
                self.maps.append(mmap.mmap(fd, size, prot=prot))
        except BaseException:
            self.close()
            raise

    def close(self):
        for mapping in self.maps:
            mapping.close()


def outcome(function, *args):
    try:
        return function(*args)
    except OSError as error:
        return ("errno", errno.errorcode[error.errno])


def walk(root):
    """Every path below `root`, relative, directories first."""
    found = []
    for directory, names, files in os.walk(root):
        for name in sorted(names + files):
            found.append(os.path.relpath(os.path.join(directory, name), root))
    return found


def names_of(root, inode):
    return [path for path in walk(root) if os.lstat(os.path.join(root, path)).st_ino == inode]


def facts(root, path, untimed=()):
    """What must be equal of one name: all but times that the clock set, and sizes and links of directories."""
    info = os.lstat(os.path.join(root, path))
    kind = stat.S_IFMT(info.st_mode)
    seen = {"mode": oct(info.st_mode), "uid": info.st_uid, "gid": info.st_gid, "nlink": info.st_nlink,
            "mtime": info.st_mtime_ns if info.st_mtime_ns < OLD else "now"}
    if path in untimed:
        del seen["mtime"]
    if kind == stat.S_IFREG:
        seen["size"] = info.st_size
    elif kind == stat.S_IFLNK:
        seen["target"] = os.readlink(os.path.join(root, path))
    return seen


def groups(root, paths):
    """The names that are one inode, as sorted lists."""
    by_inode = {}
    for path in paths:
        by_inode.setdefault(os.lstat(os.path.join(root, path)).st_ino, []).append(path)
    return sorted(sorted(names) for names in by_inode.values())


def xattrs(path):
    """User attributes that a program set, with their values."""
    return {name: os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
            if name.startswith("user.") and not name.startswith("user.weightfs.")}


def contents(root):
    return {path: sha256(os.path.join(root, path)) for path in walk(root)
            if stat.S_ISREG(os.lstat(os.path.join(root, path)).st_mode)}


def holes(fd, size):
    """[(begin, end)] of what lseek calls holes; every byte of the file is either in one or in data."""
    found, at = [], 0
    while at < size:
        begin = os.lseek(fd, at, os.SEEK_HOLE)
        assert at <= begin <= size
        if begin == size:
            break
        try:
            at = os.lseek(fd, begin, os.SEEK_DATA)
        except OSError as error:
            assert error.errno == errno.ENXIO
            at = size
        assert at > begin
        found.append((begin, at))
    return found


def pool():
    """Named contents: equal tensors in several files, shards that are not, sizes around every limit."""
    def noise(seed, size):
        return shards.random_bytes(seed, size)

    tensors = {f"t{n}": noise(n, size) for n, size in enumerate((20_000, 70_001, 1, 4096, 131_072))}
    names = list(tensors)
    some = {
        "empty": b"", "byte": b"x", "text": b"some text\n" * 7, "page": noise(50, 4096),
        "small": noise(51, 65_536), "large": noise(52, 65_537), "larger": noise(53, 300_001), "zeros": bytes(150_000),
        "shard-a": shards.shard({name: tensors[name] for name in names}),
        "shard-b": shards.shard({name: tensors[name] for name in reversed(names)}, pad=False),
        "shard-c": shards.shard({"x": tensors["t1"], "y": noise(60, 90_000), "z": tensors["t4"]}),
        "shard-d": shards.shard({"x": tensors["t0"]}),
        "lfs": shards.LFS_POINTER,
    }
    some["shard-cut"] = some["shard-a"][:100_000]
    some["header-cut"] = some["shard-b"][:50]
    some["shard-long"] = some["shard-d"] + b"\n"
    some["twice"] = some["large"] + some["large"]
    return some
