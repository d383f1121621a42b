"""Who may do what: modes, sticky directories, other users, read-only mounts."""

import errno
import mmap
import os
import stat
import subprocess

import pytest

from support.files import errno_of, in_child, read_file, write_file


def let_others_pass(directory):
    """Others may go through `directory` and what is above it."""
    for path in [directory, *directory.parents]:
        if not path.stat().st_mode & 0o001:
            path.chmod(path.stat().st_mode | 0o011)


@pytest.mark.root_only
def test_access_by_mode(unmounted, other_user):
    """With allow_other another user gets what the modes allow, and no more."""
    let_others_pass(unmounted.dir.parent)
    unmounted.mount("allow_other")
    root = unmounted.dir
    os.chmod(root, 0o755)
    write_file(root / "open", b"x")
    os.chmod(root / "open", 0o644)
    write_file(root / "closed", b"x", 0o600)
    (root / "inbox").mkdir()
    os.chmod(root / "inbox", 0o1777)
    write_file(root / "inbox" / "mine", b"x")

    def act():
        return {
            "read open": errno_of(read_file, root / "open"),
            "read closed": errno_of(read_file, root / "closed"),
            "write open": errno_of(os.open, root / "open", os.O_WRONLY),
            "create in root": errno_of(write_file, root / "new", b""),
            "create in inbox": errno_of(write_file, root / "inbox" / "new", b"theirs"),
            "remove another's in inbox": errno_of(os.unlink, root / "inbox" / "mine"),
            "chmod another's": errno_of(os.chmod, root / "open", 0o777),
            "utime another's": errno_of(os.utime, root / "open", (1, 1)),
            "chown": errno_of(os.chown, root / "inbox" / "new", 0, 0),
            "access": os.access(root / "open", os.W_OK),
        }

    assert in_child(act, user=other_user) == {
        "read open": 0, "read closed": errno.EACCES, "write open": errno.EACCES,
        "create in root": errno.EACCES, "create in inbox": 0,
        "remove another's in inbox": errno.EPERM, "chmod another's": errno.EPERM,
        "utime another's": errno.EPERM, "chown": errno.EPERM, "access": False,
    }
    info = os.stat(root / "inbox" / "new")
    assert (info.st_uid, info.st_gid) == (other_user.pw_uid, other_user.pw_gid)


@pytest.mark.root_only
def test_no_access_without_allow_other(mount, other_user):
    """Without allow_other nobody but the one who mounted gets in."""
    let_others_pass(mount.dir.parent)

    def act():
        return errno_of(os.listdir, mount.dir)

    assert in_child(act, user=other_user) == errno.EACCES


def test_read_only_mount(unmounted):
    """-o ro: all can be read, nothing changed."""
    unmounted.mount()
    write_file(unmounted.dir / "file", b"x" * 100_000)
    unmounted.umount()
    unmounted.mount("ro")
    root = unmounted.dir
    assert read_file(root / "file") == b"x" * 100_000
    for call in ((write_file, root / "new", b""), (os.unlink, root / "file"), (os.mkdir, root / "d"),
                 (os.chmod, root / "file", 0o600), (os.rename, root / "file", root / "x"),
                 (os.truncate, root / "file", 0), (os.setxattr, root / "file", "user.a", b"")):
        assert errno_of(*call) == errno.EROFS, call


# ---- the same as on the disk, whoever asks ----

MODES = (0o000, 0o100, 0o200, 0o400, 0o500, 0o600, 0o700, 0o010, 0o020, 0o040, 0o070, 0o001, 0o002, 0o004, 0o007,
         0o755, 0o644, 0o666, 0o777, 0o1777, 0o1733, 0o2775, 0o4755, 0o6711)


@pytest.fixture
def open_to_all(unmounted, plain):
    """The mount and a plain directory, both of which everybody may enter."""
    let_others_pass(unmounted.dir.parent)
    unmounted.mount("allow_other")
    for root in (unmounted.dir, plain):
        os.chmod(root, 0o755)
    return unmounted


def everyone(other_user):
    """The relations that a caller has to an inode: (owner, group)."""
    return {"owner": (other_user.pw_uid, 0), "group": (0, other_user.pw_gid), "other": (0, 0),
            "both": (other_user.pw_uid, other_user.pw_gid)}


def done_to_file(path):
    """What each call on a file says."""
    return {call.__name__ + str(rest): errno_of(call, path, *rest) for call, *rest in (
        (os.open, os.O_RDONLY), (os.open, os.O_WRONLY), (os.open, os.O_RDWR), (os.open, os.O_WRONLY | os.O_TRUNC),
        (os.truncate, 1), (os.utime, None), (os.utime, (5, 5)), (os.chown, -1, -1), (os.chown, 0, -1),
        (os.chown, -1, 0), (os.getxattr, "user.a"), (os.setxattr, "user.a", b"2"), (os.listxattr,), (os.stat,))} | {
            "access": [os.access(path, kind) for kind in (os.R_OK, os.W_OK, os.X_OK)]}


def done_to_directory(path):
    """What each call on a directory, and on what is in it, says."""
    found = {"access": [os.access(path, kind) for kind in (os.R_OK, os.W_OK, os.X_OK)]}
    for name, call in {
            "list": lambda: os.listdir(path), "stat": lambda: os.stat(path / "mine"),
            "create": lambda: os.mknod(path / "new"), "mkdir": lambda: os.mkdir(path / "d"),
            "symlink": lambda: os.symlink("x", path / "link"), "tmpfile": lambda: os.close(
                os.open(path, os.O_TMPFILE | os.O_RDWR)),
            "link": lambda: os.link(path / "open", path / "second"),
            "rename mine": lambda: os.rename(path / "mine", path / "moved"),
            "rename theirs": lambda: os.rename(path / "theirs", path / "moved-theirs"),
            "rename over theirs": lambda: os.rename(path / "moved", path / "theirs-too"),
            "remove mine": lambda: os.unlink(path / "moved"), "remove theirs": lambda: os.unlink(path / "open"),
            "remove their directory": lambda: os.rmdir(path / "sub")}.items():
        found[name] = errno_of(call)
    return found


@pytest.mark.root_only
def test_files_by_mode(open_to_all, plain, other_user):
    """Owner, group and others may do to a file of each mode what they may on the disk."""
    def act(root):
        return {(mode, who): done_to_file(root / f"{mode:o}-{who}") for mode in MODES for who in everyone(other_user)}

    for root in (plain, open_to_all.dir):
        for mode in MODES:
            for who, (uid, gid) in everyone(other_user).items():
                path = root / f"{mode:o}-{who}"
                write_file(path, b"x" * 100)
                os.setxattr(path, "user.a", b"1")
                os.chown(path, uid, gid)
                os.chmod(path, mode)
    on_disk, found = (in_child(act, root, user=other_user) for root in (plain, open_to_all.dir))
    assert found == on_disk
    assert {code for calls in found.values() for code in calls.values() if isinstance(code, int)} >= {
        0, errno.EACCES, errno.EPERM}
    modes = [{path.name: os.stat(path).st_mode for path in root.iterdir()} for root in (plain, open_to_all.dir)]
    assert modes[0] == modes[1]


@pytest.mark.root_only
def test_directories_by_mode(open_to_all, plain, other_user):
    """The same for directories, sticky ones included, and for what is in them."""
    def act(root):
        return {(mode, who): done_to_directory(root / f"{mode:o}-{who}")
                for mode in MODES for who in everyone(other_user)}

    for root in (plain, open_to_all.dir):
        for mode in MODES:
            for who, (uid, gid) in everyone(other_user).items():
                path = root / f"{mode:o}-{who}"
                (path / "sub").mkdir(parents=True)
                for name in ("mine", "theirs", "theirs-too", "open"):
                    write_file(path / name, b"x")
                os.chown(path / "mine", other_user.pw_uid, other_user.pw_gid)
                os.chmod(path / "open", 0o666)
                os.chown(path, uid, gid)
                os.chmod(path, mode)
    on_disk, found = (in_child(act, root, user=other_user) for root in (plain, open_to_all.dir))
    assert found == on_disk
    left = [sorted(str(path.relative_to(root)) for path in root.rglob("*")) for root in (plain, open_to_all.dir)]
    assert left[0] == left[1]


# Who is not root changes an inode of his own: what becomes of the set-id bits.
CHANGES = {
    "write": lambda path: write_at(path, b"y"),
    "write nothing": lambda path: write_at(path, b""),
    "truncate": lambda path: os.truncate(path, 5),
    "truncate to its size": lambda path: os.truncate(path, 100),
    "fallocate": lambda path: with_fd(path, lambda fd: os.posix_fallocate(fd, 0, 200)),
    "mapped write": lambda path: with_fd(path, map_and_write),
    "chown": lambda path: os.chown(path, os.geteuid(), os.getegid()),
    "chown to nobody": lambda path: os.chown(path, -1, -1),
    "chmod": lambda path: os.chmod(path, 0o6775),
    "utime": lambda path: os.utime(path, (5, 5)),
    "setxattr": lambda path: os.setxattr(path, "user.a", b"1"),
    "rename": lambda path: os.rename(path, path.parent / "moved") or os.rename(path.parent / "moved", path),
}
SET_ID_MODES = (0o4755, 0o2755, 0o6755, 0o2745, 0o6744, 0o6777)


def with_fd(path, call):
    with open(path, "r+b", buffering=0) as f:
        call(f.fileno())


def write_at(path, data):
    with_fd(path, lambda fd: os.write(fd, data))


def map_and_write(fd):
    with mmap.mmap(fd, 100) as m:
        m[0] = 7


@pytest.mark.root_only
@pytest.mark.parametrize("as_root", [False, True], ids=["by-its-owner", "by-root"])
def test_set_id_bits(open_to_all, plain, other_user, as_root):
    """Set-id bits go, or stay, by each change as they do on the disk."""
    for root in (plain, open_to_all.dir):
        for change in CHANGES:
            for mode in SET_ID_MODES:
                path = root / change / f"{mode:o}"
                path.parent.mkdir(exist_ok=True)
                write_file(path, b"x" * 100)
                os.chown(path, other_user.pw_uid, other_user.pw_gid)
                os.chown(path.parent, other_user.pw_uid, other_user.pw_gid)
                os.chmod(path, mode)

    def act(root):
        for change, call in CHANGES.items():
            for mode in SET_ID_MODES:
                call(root / change / f"{mode:o}")

    modes = []
    for root in (plain, open_to_all.dir):
        in_child(act, root, user=None if as_root else other_user)
        modes.append({(change, f"{mode:o}"): oct(stat.S_IMODE(os.stat(root / change / f"{mode:o}").st_mode))
                      for change in CHANGES for mode in SET_ID_MODES})
    assert modes[0] == modes[1]
    open_to_all.remount()
    assert modes[1] == {(change, mode): oct(stat.S_IMODE(os.stat(open_to_all.dir / change / mode).st_mode))
                        for change, mode in modes[1]}


@pytest.mark.root_only
def test_set_id_program(unmounted, other_user):
    """-o suid: a set-user-id program runs as its owner; without it as the caller."""
    let_others_pass(unmounted.dir.parent)
    for options, expected in ((("allow_other", "suid"), 4321), (("allow_other",), other_user.pw_uid)):
        unmounted.mount(*options)
        os.chmod(unmounted.dir, 0o755)
        program = unmounted.dir / "id"
        write_file(program, read_file("/usr/bin/id"))
        os.chown(program, 4321, 0)
        os.chmod(program, 0o4755)
        done = subprocess.run([program, "-u"], capture_output=True, text=True, user=other_user.pw_uid,
                              group=other_user.pw_gid, extra_groups=[])
        assert int(done.stdout) == expected
        unmounted.umount()
