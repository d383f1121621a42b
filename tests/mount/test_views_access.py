"""Views show nobody what he may not read: modes, owners, closed directories, links that lead to others' files."""

import contextlib
import errno
import os
import pathlib
import shutil
import stat
import subprocess
import tempfile

import pytest

from support.files import errno_of, in_child, random_bytes, read_file, write_file
from support.shards import shard
from support.watchdog import detach

SECRET = random_bytes(1, 5000)
PUBLIC = random_bytes(2, 5000)
VIEWS = [".tensors/a.npy", ".tensors/a.safetensors", ".shards/single/model.safetensors", ".shards/1/model.safetensors"]
NOT_LET = (errno.EACCES, errno.EPERM, errno.ENOENT)


@pytest.fixture
def root(unmounted):
    """A mount that others may use, as the current directory: pytest's own directories are closed to them."""
    mount = unmounted.mount("allow_other")
    os.chmod(mount.dir, 0o755)
    here = os.open(".", os.O_RDONLY)
    os.chdir(mount.dir)
    yield pathlib.Path(".")
    os.fchdir(here)
    os.close(here)


def model_of(directory, data, owner=None, mode=0o644, directory_mode=0o755):
    """A model of one tensor, "a"."""
    directory.mkdir()
    write_file(directory / "model.safetensors", shard({"a": data}))
    write_file(directory / "key.json", data)
    for path in directory.iterdir():
        os.chmod(path, mode)
    os.chmod(directory, directory_mode)
    for path in (*directory.iterdir(), directory) if owner else ():
        os.chown(path, owner.pw_uid, owner.pw_gid)
    return directory


def reads(user, *paths):
    """{path: errno, or the bytes} of what `user` gets by reading."""
    def read():
        found = {}
        for path in paths:
            try:
                found[str(path)] = read_file(path)
            except OSError as error:
                found[str(path)] = error.errno
        return found
    return in_child(read, user=user)


def assert_kept(user, *paths):
    """`user` reads SECRET by none of these."""
    found = reads(user, *paths)
    assert [path for path, got in found.items() if isinstance(got, bytes) and SECRET in got] == []
    assert set(found.values()) <= set(NOT_LET), found


# ---- modes of files and directories ----


@pytest.mark.root_only
def test_modes(root, other_user):
    """Who may read a shard may read its views, and nobody else; in a directory that is closed nothing is found."""
    open_ = model_of(root / "open", PUBLIC)
    closed = model_of(root / "closed", SECRET, mode=0o600)
    below = model_of(root / "below", SECRET, directory_mode=0o700)
    his = model_of(root / "his", PUBLIC, owner=other_user, mode=0o400, directory_mode=0o500)
    unlisted = model_of(root / "unlisted", PUBLIC, directory_mode=0o711)
    for directory in (open_, his, unlisted):
        for path, got in reads(other_user, *(directory / view for view in VIEWS)).items():
            assert isinstance(got, bytes) and PUBLIC in got, path
    assert_kept(other_user, *(closed / view for view in VIEWS), closed / ".shards/1/key.json",
                *(below / view for view in VIEWS), below / ".shards/1/key.json")

    def listings():
        return {str(path): errno_of(os.listdir, path) for directory in (open_, closed, below, his, unlisted)
                for path in (directory / ".tensors", directory / ".shards", directory / ".shards/1")}

    refused = {path for path, error in in_child(listings, user=other_user).items() if error}
    assert refused == {str(directory / name) for directory in (below, unlisted)
                       for name in (".tensors", ".shards", ".shards/1")} | {"closed/.tensors"}
    info = os.stat(his / ".tensors/a.npy")
    assert (stat.S_IMODE(info.st_mode), info.st_uid) == (0o400, other_user.pw_uid)


@pytest.mark.root_only
@pytest.mark.parametrize("change", ["chmod", "chown"])
def test_closed_afterwards(root, other_user, change):
    """Once a shard is closed to others, so are its views, whoever looked at them before."""
    owner, mode = (other_user, 0o600) if change == "chown" else (None, 0o644)
    directory = model_of(root / "model", SECRET, owner, mode)
    path = directory / "model.safetensors"
    found = reads(other_user, *(directory / view for view in VIEWS))
    assert [view for view, got in found.items() if isinstance(got, int) or SECRET not in got] == []
    if change == "chmod":
        os.chmod(path, 0o600)
    else:
        os.chown(path, 0, 0)
    assert reads(other_user, path) == {str(path): errno.EACCES}
    assert_kept(other_user, *(directory / view for view in VIEWS))


@pytest.mark.root_only
@pytest.mark.xfail(strict=True, reason="V24: .tensors has the directory's owner and group, and the shard's bits")
@pytest.mark.parametrize("who", ["group", "owner"])
def test_shard_of_another_owner(root, other_user, who):
    """Who may read the shard as its owner or in its group may read its views, whoever has the directory."""
    directory = model_of(root / "model", PUBLIC, mode=0o640 if who == "group" else 0o600)
    os.chown(directory / "model.safetensors", *((0, other_user.pw_gid) if who == "group" else (other_user.pw_uid, 0)))
    found = reads(other_user, directory / "model.safetensors", *(directory / view for view in VIEWS))
    assert [view for view, got in found.items() if isinstance(got, int)] == []


@pytest.mark.root_only
def test_opened_before(root, other_user):
    """What is open already can be read on, as on any disk; what was mapped, too."""
    directory = model_of(root / "model", PUBLIC)

    def act():
        with open(directory / ".tensors/a.npy", "rb", buffering=0) as f:
            return PUBLIC in f.read(), errno_of(os.open, directory / ".tensors/a.npy", os.O_WRONLY)

    good, error = in_child(act, user=other_user)
    assert good and error in (errno.EACCES, errno.EROFS)


# ---- links to what is another's ----


@pytest.fixture
def attacked(root, other_user):
    """What others made for themselves, and a place where the other user may make models."""
    model_of(root / "closed", SECRET, mode=0o600)
    model_of(root / "below", SECRET, directory_mode=0o700)
    (root / "inbox").mkdir()
    os.chmod(root / "inbox", 0o1777)

    def attack(files, links):
        def make():
            directory = root / "inbox/mine"
            directory.mkdir()
            for name, content in files.items():
                write_file(directory / name, content)
            for name, target in links.items():
                (directory / name).symlink_to(target)
        in_child(make, user=other_user)
        return root / "inbox/mine"

    return attack


@pytest.mark.root_only
def test_shard_of_another(attacked, other_user):
    """A shard of my own beside a link to one that I may not read: no view gives me its bytes."""
    mine = attacked({"model-00001-of-00002.safetensors": shard({"b": PUBLIC})},
                    {"model-00002-of-00002.safetensors": "../../closed/model.safetensors"})
    assert reads(other_user, mine / "model-00002-of-00002.safetensors").popitem()[1] == errno.EACCES
    assert_kept(other_user, mine / ".tensors/a.npy", mine / ".tensors/a.safetensors",
                mine / ".shards/5000/model-00002-of-00002.safetensors", mine / ".shards/single/model.safetensors")


@pytest.mark.root_only
def test_shard_below_a_closed_directory(attacked, other_user):
    """A link into a directory that I may not search leads nowhere for me, in a view as anywhere."""
    mine = attacked({}, {"model.safetensors": "../../below/model.safetensors"})
    assert reads(other_user, mine / "model.safetensors").popitem()[1] == errno.EACCES
    assert_kept(other_user, *(mine / view for view in VIEWS))


@pytest.mark.root_only
@pytest.mark.parametrize("gap", ["inbox", "theirs"])
def test_link_in_a_shared_directory(attacked, root, other_user, gap):
    """The same in a directory where I may make links and that is another's: whose link it is does not count."""
    if gap == "theirs":
        (root / "theirs").mkdir()
        os.chown(root / "theirs", 0, other_user.pw_gid)
        os.chmod(root / "theirs", 0o775)
    in_child(os.symlink, "../below/model.safetensors", root / gap / "model.safetensors", user=other_user)
    in_child(os.symlink, "../below/key.json", root / gap / "key.json", user=other_user)
    assert reads(other_user, root / gap / "model.safetensors").popitem()[1] == errno.EACCES
    assert_kept(other_user, *(root / gap / view for view in VIEWS), root / gap / ".shards/single/key.json")


@pytest.mark.root_only
def test_link_of_another(attacked, root, other_user):
    """A link that root made into a directory that is closed to me lets me in no more than it does on any disk."""
    (root / "shown").mkdir()
    for name in ("model.safetensors", "key.json"):
        (root / "shown" / name).symlink_to(f"../below/{name}")
    assert_kept(other_user, root / "shown/model.safetensors", root / "shown/key.json")
    assert_kept(other_user, *(root / "shown" / view for view in VIEWS), root / "shown/.shards/single/key.json")


@pytest.mark.root_only
def test_other_file_below_a_closed_directory(attacked, other_user):
    """The same of what is only shown beside the shards, and of directories."""
    mine = attacked({"model.safetensors": shard({"a": PUBLIC})},
                    {"key.json": "../../below/key.json", "below": "../../below", "up": "../.."})
    assert reads(other_user, mine / "key.json").popitem()[1] == errno.EACCES
    assert_kept(other_user, mine / ".shards/1/key.json", mine / ".shards/1/below/key.json",
                mine / ".shards/1/below/model.safetensors", mine / ".shards/1/up/below/key.json",
                mine / ".shards/1/up/closed/key.json")


@pytest.mark.root_only
def test_names_of_another(attacked, other_user):
    """The names of tensors in a file that I may not read are not listed for me either."""
    mine = attacked({"model-00001-of-00002.safetensors": shard({"b": PUBLIC})},
                    {"model-00002-of-00002.safetensors": "../../closed/model.safetensors"})
    assert in_child(errno_of, os.listdir, mine / ".tensors", user=other_user) == errno.EACCES
    assert in_child(errno_of, os.stat, mine / ".tensors/a.npy", user=other_user) == errno.EACCES
    assert_kept(other_user, mine / ".shards/1/model.safetensors.index.json")


# ---- an ordinary user's mount ----


@pytest.mark.root_only
def test_mount_of_an_ordinary_user(weightfs, watchdog, other_user):
    """Without any privilege, by fusermount3: the same views, for him alone."""
    with contextlib.ExitStack() as stack:
        base = pathlib.Path(tempfile.mkdtemp(prefix="weightfs-test-"))
        stack.callback(shutil.rmtree, base)
        os.chmod(base, 0o755)
        program, directory = shutil.copy(weightfs, base), base / "mnt"
        directory.mkdir()
        for path in (base, directory):
            os.chown(path, other_user.pw_uid, other_user.pw_gid)

        def weightfs_as_user(*arguments):
            return subprocess.run([program, *map(str, arguments)], user=other_user.pw_uid, group=other_user.pw_gid,
                                  extra_groups=[], capture_output=True, text=True, timeout=240)

        done = weightfs_as_user("mount", base / "store", directory)
        assert done.returncode == 0, done.stderr
        stack.callback(detach, str(directory))

        def act():
            model_of(directory / "model", PUBLIC, mode=0o600)
            names = sorted(os.listdir(directory / "model/.shards/1"))
            return names, [PUBLIC in read_file(directory / "model" / view) for view in VIEWS], errno_of(
                os.open, directory / "model/.shards/1/key.json", os.O_RDWR), os.listdir(directory / "model/.tensors")

        assert in_child(act, user=other_user) == (
            ["key.json", "model.safetensors"], [True] * len(VIEWS), errno.EROFS, ["a.npy"])
        assert errno_of(os.listdir, directory / "model/.tensors") == errno.EACCES  # root is not let in
        done = weightfs_as_user("umount", directory)
        assert done.returncode == 0, done.stderr
        done = weightfs_as_user("fsck", base / "store", "--bytes")
        assert done.returncode == 0, done.stdout + done.stderr
