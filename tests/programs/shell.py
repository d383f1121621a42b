"""Shell commands run in the mount and in a plain directory, and what they leave there.

A `Pair` runs the same script in both, with the same environment, and wants the
same exit status, output and error text. `tree` tells what is below a directory;
`make_source` makes something to copy, with each kind of file that a program
can get wrong.
"""

import contextlib
import os
import signal
import stat
import subprocess
from typing import NamedTuple

import pytest

from support.files import read_file, sha256, write_file
from support.shards import valid

OLD = 1_600_000_000_123_456_789  # ns; a time that no command makes by itself
STEP = 1_000_000_001
SHOWN = 10  # differences in a message
# Of the files that a program finds; those that it makes are dirty at first in any case.
STATES = [pytest.param(True, id="sealed"), pytest.param(False, id="dirty", marks=pytest.mark.long)]


def scripts(listing):
    """{name: script} of a text in which a line "## NAME" stands before each script."""
    parts = listing.strip().removeprefix("## ").split("\n## ")
    return {name: script.strip() for name, script in (part.split("\n", 1) for part in parts)}


def environment():
    """The same for every run: no settings of the user's, no language, and no home."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "TMPDIR")}
    return kept | {"PATH": kept["PATH"] + ":/usr/sbin:/sbin", "HOME": "/nonexistent", "LC_ALL": "C.UTF-8",
                   "TZ": "UTC", "PYTHONDONTWRITEBYTECODE": "1"}


def run(script, directory, *, check=True, **variables):
    """Run a bash script in `directory`; -e, -u and pipefail are set. Variables go to its environment.

    It and what it started have the time of the test, and have ended afterwards.
    """
    command = ["bash", "-euo", "pipefail", "-c", script]
    names = {name: os.fspath(value) for name, value in variables.items()}
    shell = subprocess.Popen(command, cwd=directory, env=environment() | names, process_group=0,
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        done = subprocess.CompletedProcess(command, 0, *shell.communicate())
    finally:
        end_group(shell)
    done.returncode = shell.returncode
    if check:
        assert done.returncode == 0, f"exit {done.returncode}\n{text(done.stdout)}\n{text(done.stderr)}"
    return done


def end_group(process):
    """End what a process has left behind, and itself if it still runs."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def text(output):
    return output.decode(errors="backslashreplace")


class Entry(NamedTuple):
    """What a name stands for; None is what was not asked for, or may not be read."""

    kind: int
    mode: int
    owner: tuple
    links: int | None
    size: int | None
    device: int
    mtime_ns: int | None
    content: str | None
    first_name: bytes
    xattrs: tuple


NO_TIMES, ALL_TIMES, BUT_OF_LINKS = range(3)  # which mtimes a tree has


def entry(path, relative, first_names, times):
    info = os.lstat(path)
    kind = stat.S_IFMT(info.st_mode)
    content = None
    if kind == stat.S_IFREG and os.access(path, os.R_OK):
        content = sha256(path)
    elif kind == stat.S_IFLNK:
        content = os.readlink(path)
    timed = times == ALL_TIMES or (times == BUT_OF_LINKS and kind != stat.S_IFLNK)
    names = [name for name in os.listxattr(path, follow_symlinks=False) if name.startswith("user.")]
    xattrs = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
    return Entry(kind, stat.S_IMODE(info.st_mode), (info.st_uid, info.st_gid),
                 *((None, None) if kind == stat.S_IFDIR else (info.st_nlink, info.st_size)), info.st_rdev,
                 info.st_mtime_ns if timed else None, content,
                 first_names.setdefault(info.st_ino, relative), tuple(sorted(xattrs.items())))


def tree(root, *, times=NO_TIMES):
    """{relative name: Entry} of all below `root`, the names as bytes; with mtimes as `times` says.

    Sizes and links of directories are not in it: each file system has its own rule for them.
    `first_name` is that of the inode's first hard link in the order of names.
    """
    root = os.fsencode(root)
    paths = []
    for directory, directories, files in os.walk(root):
        paths += [os.path.join(directory, name) for name in directories + files]
    first_names = {}
    return {os.path.relpath(path, root): entry(path, os.path.relpath(path, root), first_names, times)
            for path in sorted(paths)}


def entry_of(path):
    """The Entry of one file, all times included, whatever its name."""
    return entry(path, b"", {}, ALL_TIMES)


def assert_same(left, right, what=""):
    """Two trees are equal; if not, the message shows the first names that differ."""
    different = {name: (left.get(name), right.get(name))
                 for name in left.keys() | right.keys() if left.get(name) != right.get(name)}
    lines = [f"{os.fsdecode(name)!r}:\n  {ours}\n  {theirs}"
             for name, (ours, theirs) in sorted(different.items())[:SHOWN]]
    assert not different, "\n".join([what, *lines])


class Pair:
    """The mount and a plain directory: what is done to both must end the same."""

    def __init__(self, mount, plain):
        self.mount = mount
        self.plain = plain
        self.directories = (plain, mount.dir)

    def each(self, function, *args):
        """Call `function` with the one directory, then with the other."""
        for directory in self.directories:
            function(directory, *args)

    def _run(self, root, below, script, variables):
        done = run(script, root / below, check=False, **variables)
        out, err = (text(output.replace(os.fsencode(root), b"HERE")) for output in (done.stdout, done.stderr))
        return done.returncode, out, err

    def run(self, script, *, below=".", **variables):
        """Run a script in both, in the directory `below`: the same output and errors, and success.

        Returns the output.
        """
        expected = self._run(self.plain, below, script, variables)
        assert expected[0] == 0, f"{script}\nin the plain directory: {expected}"
        found = self._run(self.mount.dir, below, script, variables)
        assert found == expected, f"{script}\nmount: {found}\nplain: {expected}"
        return expected[1]

    def run_each(self, scripts, prepare=lambda directory: None, *, sealed=False, **variables):
        """Run each of {name: script} in a directory of its name, where `prepare` was called, and compare all.

        What was prepared is dirty when the scripts run, or `sealed`.
        """
        for name in scripts:
            self.each(lambda root: (root / name).mkdir())
            self.each(lambda root: prepare(root / name))
        if sealed:
            self.mount.wait_sealed()
        for name, script in scripts.items():
            self.run(script, below=name, **variables)
            assert_same(tree(self.mount.dir / name), tree(self.plain / name), script)
        self.assert_same()

    def assert_same(self, *, times=NO_TIMES):
        """Both hold the same: now, once all is sealed, and after a remount."""
        expected = tree(self.plain, times=times)
        assert expected, "nothing to compare"
        assert_same(tree(self.mount.dir, times=times), expected)
        self.mount.wait_sealed()
        assert_same(tree(self.mount.dir, times=times), expected)
        self.mount.remount()
        assert_same(tree(self.mount.dir, times=times), expected)


def make_model(directory, *, shards=3, size=20_000):
    """Shards, their index and a configuration."""
    directory.mkdir(parents=True)
    for number in range(1, shards + 1):
        write_file(directory / f"model-{number:05}-of-{shards:05}.safetensors", valid(number, size))
    write_file(directory / "config.json", b'{\n  "model_type": "llama"\n}\n')
    write_file(directory / "model.safetensors.index.json", b'{"metadata": {}, "weight_map": {}}\n')


def make_source(root):
    """A model, and beside it every kind of file; old times, in nanoseconds."""
    make_model(root / "model")
    others = root / "others"
    (others / "empty directory").mkdir(parents=True)
    write_file(others / "empty", b"")
    write_file(others / "read-only", b"r" * 5000)
    write_file(others / "private", b"p")
    write_file(others / "script.sh", b"#!/bin/sh\necho run\n")
    write_file(os.fsencode(others) + b"/\xc3\xbc \xff\n-", b"odd name")
    write_file(others / "-rf", b"like an option")
    with open(others / "sparse", "wb") as f:
        f.truncate(1 << 20)
        f.seek(1 << 19)
        f.write(b"s" * 4096)
    os.link(others / "private", others / "private-too")
    os.link(root / "model" / "config.json", others / "config-too")
    os.symlink("../model/config.json", others / "link")
    os.symlink("nowhere", others / "dangling")
    os.symlink("../model", others / "directory-link")
    os.mkfifo(others / "fifo", 0o640)
    os.setxattr(others / "script.sh", "user.origin", b"here\0and there")
    os.setxattr(others / "empty directory", "user.kept", b"")
    modes = {"read-only": 0o444, "private": 0o600, "script.sh": 0o751, "empty directory": 0o700}
    for name, mode in modes.items():
        os.chmod(others / name, mode)
    age(root)


def age(root):
    """Give everything below `root`, and `root`, a time of its own, each long ago."""
    for number, name in enumerate(sorted(tree(root), reverse=True)):
        when = OLD - number * STEP
        os.utime(os.path.join(os.fsencode(root), name), ns=(when, when), follow_symlinks=False)
    os.utime(root, ns=(OLD, OLD))


def same_bytes(left, right):
    return read_file(left) == read_file(right)
