"""Making, hashing and poking files: what Python's os module leaves out."""

import ctypes
import hashlib
import os
import pickle
import random
import traceback

libc = ctypes.CDLL(None, use_errno=True)

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_SYMLINK_FOLLOW = 0x400
FALLOC_KEEP_SIZE = 1
FALLOC_PUNCH_HOLE = 2
FALLOC_ZERO_RANGE = 16

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def _checked(result, path=None):
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return result


def renameat2(old, new, flags):
    """rename(2) with RENAME_NOREPLACE or RENAME_EXCHANGE."""
    _checked(libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags), str(new))


def fallocate(fd, mode, offset, length):
    """fallocate(2), modes included."""
    _checked(libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))


def link_followed(source, path):
    """linkat(2) with AT_SYMLINK_FOLLOW: a name for what `source` leads to."""
    _checked(libc.linkat(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(path), AT_SYMLINK_FOLLOW), str(path))


def link_fd(fd, path):
    """Give an open file (O_TMPFILE) a name."""
    link_followed(f"/proc/self/fd/{fd}", path)


def random_bytes(seed, size):
    """`size` bytes that depend on `seed` alone and do not compress or repeat."""
    return random.Random(seed).randbytes(size)


def write_file(path, data, mode=0o666):
    """open(O_CREAT|O_TRUNC), write, close: the errors of close included."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        write_all(fd, data)
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)


def write_all(fd, data):
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]


def pwrite_all(fd, data, offset):
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


def read_file(path):
    with open(path, "rb") as f:
        return f.read()


def sha256(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def tree_hashes(root):
    """{relative path: sha256} of every regular file below `root`."""
    return {str(path.relative_to(root)): sha256(path)
            for path in sorted(root.rglob("*")) if path.is_file()}


def tree_size(root):
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def segments(fd):
    """[(begin, end)] of the data of a file, as SEEK_DATA and SEEK_HOLE tell."""
    found, at, size = [], 0, os.fstat(fd).st_size
    while at < size:
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            break
        at = os.lseek(fd, begin, os.SEEK_HOLE)
        found.append((begin, at))
    return found


def errno_of(function, *args, **kwargs):
    """The errno that a call fails with, 0 where it succeeds."""
    try:
        function(*args, **kwargs)
    except OSError as error:
        return error.errno
    return 0


def in_directory(directory, function, *args):
    """Call it there: a path may be too long, and that of a socket has at most 107 bytes."""
    before = os.getcwd()
    os.chdir(directory)
    try:
        return function(*args)
    finally:
        os.chdir(before)


class Child:
    """A forked process that calls `function`, as `user` (a pwd entry) if given."""

    def __init__(self, function, *args, user=None):
        self.pipe, end = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(end, function, args, user)
        os.close(end)

    def _run(self, end, function, args, user):
        try:
            if user is not None:
                os.setgroups([])
                os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
                os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
            answer = (True, function(*args))
        except BaseException:  # the child must not return into the test runner
            answer = (False, traceback.format_exc())
        with os.fdopen(end, "wb") as pipe:
            pickle.dump(answer, pipe)
        os._exit(0)

    def value(self):
        """Wait for it: what the function returned. Its exception is raised here, with the child's traceback."""
        with os.fdopen(self.pipe, "rb") as pipe:
            data = pipe.read()
        _, status = os.waitpid(self.pid, 0)
        assert data, f"the child ended without an answer (status {status:#x})"
        good, value = pickle.loads(data)
        assert good, value
        return value


def in_child(function, *args, user=None):
    """The value of `function` in a process of its own."""
    return Child(function, *args, user=user).value()


def at_once(count, function):
    """The values of function(0), function(1), …, each in a process, begun as near to each other as can be."""
    gate, opened = os.pipe()

    def begin(number):
        os.close(opened)
        os.read(gate, 1)
        return function(number)

    children = [Child(begin, number) for number in range(count)]
    os.close(opened)  # all of them read the end of the pipe
    os.close(gate)
    return [child.value() for child in children]
