"""The gate (docs/semantics.md): what a name that ends in .safetensors is held to.

Oracle for the classes: the verdict of Python's safetensors. Every file of
every class comes in each way that programs write: cp, open/write/close, rename
of a temporary file, hard link, replacement of a good shard.
"""

import errno
import os
import struct
import subprocess

import pytest

from support import shards
from support.files import (RENAME_EXCHANGE, RENAME_NOREPLACE, errno_of, random_bytes, read_file,
                           renameat2, write_all, write_file)
from support.mounts import wait_for
from support.shards import case_id

ERROR_XATTR = "user.weightfs.error"
NAME = "model.safetensors"

every = pytest.mark.parametrize("case", shards.EVERY, ids=case_id)
refused = pytest.mark.parametrize("case", shards.REFUSED_AT_RENAME, ids=case_id)
accepted = pytest.mark.parametrize("case", shards.ACCEPTED, ids=case_id)
wrong = pytest.mark.parametrize("case", shards.WRONG, ids=case_id)
incomplete = pytest.mark.parametrize("case", shards.INCOMPLETE, ids=case_id)

GOOD = shards.valid(7, 70_000)
WRONG = next(case for case in shards.WRONG if case.name == "overlap")
INCOMPLETE = next(case for case in shards.INCOMPLETE if case.name == "short")


def error_of(path):
    """The text of user.weightfs.error, None where there is none."""
    try:
        return os.getxattr(path, ERROR_XATTR).decode()
    except OSError as error:
        assert error.errno == errno.ENODATA
        return None


def close_errno(case):
    return errno.EBADMSG if case.verdict == "wrong" else 0


def assert_reported(mount, path, case):
    """The reason is in the xattr, in status and in the log; the bytes can be read."""
    where = "/" + str(path.relative_to(mount.dir))
    assert read_file(path) == case.content
    reason, colon, sentence = error_of(path).partition(": ")
    assert reason == case.reason
    assert colon and sentence and "\n" not in sentence
    report = mount.reports()[where]
    assert (report["verdict"], report["reason"]) == (case.verdict, case.reason)
    assert report["detail"] and report["size"] == len(case.content)
    wait_for(lambda: any(case.reason in line and path.name in line
                         for line in mount.log().splitlines()), 5,
             f"a line of the log with {case.reason} and {path.name}")


def assert_not_reported(mount, path, case):
    assert error_of(path) is None
    assert read_file(path) == case.content
    report = mount.reports().get("/" + str(path.relative_to(mount.dir)), {"verdict": case.verdict})
    assert report["verdict"] in (case.verdict, "none")


def assert_good(mount, path, content=GOOD):
    assert read_file(path) == content
    assert error_of(path) is None


# ---- the classes themselves ----

@pytest.mark.parametrize("case", [c for c in shards.EVERY if c.verdict != "opaque"], ids=case_id)
def test_the_classes_are_what_safetensors_says(case):
    """Each case here is accepted or refused by Python's safetensors as its class says."""
    safetensors = pytest.importorskip("safetensors")
    try:
        safetensors.deserialize(case.content)
        loads = True
    except safetensors.SafetensorError:
        loads = False
    assert loads == (case.verdict == "valid")


# ---- close ----

@every
def test_written_by_python(mount, case):
    """close(2) fails with EBADMSG for a wrong file alone; the rest is as promised."""
    path = mount.dir / NAME
    assert errno_of(write_file, path, case.content) == close_errno(case)
    if case in shards.REFUSED_AT_RENAME:
        assert_reported(mount, path, case)
    else:
        assert read_file(path) == case.content


def test_sealed_and_remounted(mount):
    """Sealing and a remount change no byte and no verdict, of no class."""
    for case in shards.EVERY:
        errno_of(write_file, mount.dir / f"{case.name}.safetensors", case.content)
    for settle in (mount.wait_sealed, mount.remount):
        settle()
        reports = mount.reports()
        for case in shards.EVERY:
            path = mount.dir / f"{case.name}.safetensors"
            assert read_file(path) == case.content
            assert reports.get("/" + path.name, {}).get("reason") == case.reason
            if case in shards.REFUSED_AT_RENAME:
                assert error_of(path).startswith(case.reason + ": ")
            elif case.reason is None:
                assert error_of(path) is None


@every
def test_written_by_cp(mount, plain, case):
    """cp says "Bad message" and fails for a wrong file; for an incomplete one it succeeds."""
    source, path = plain / NAME, mount.dir / NAME
    source.write_bytes(case.content)
    done = subprocess.run(["cp", source, path], capture_output=True, text=True)
    assert (done.returncode != 0) == (case.verdict == "wrong"), done.stderr
    if case.verdict == "wrong":
        assert "Bad message" in done.stderr
    if case in shards.REFUSED_AT_RENAME:
        assert_reported(mount, path, case)
    else:
        assert read_file(path) == case.content


@pytest.mark.parametrize("case", shards.VALID + shards.OPAQUE, ids=case_id)
def test_nothing_to_say(mount, case):
    """A valid or opaque file has no reason anywhere."""
    path = mount.dir / NAME
    write_file(path, case.content)
    assert_not_reported(mount, path, case)
    status = mount.status()
    assert (status["wrong"], status["incomplete"], status["warned"]) == (0, 0, 0)


@pytest.mark.parametrize("case", shards.WARNED, ids=case_id)
def test_warning_where_the_readme_is_stricter(mount, case):
    """What safetensors loads and its README forbids is valid, counted and named with a warning."""
    path = mount.dir / NAME
    write_file(path, case.content)
    report = mount.reports()["/" + NAME]
    assert (report["verdict"], report["reason"]) == ("valid", "warning")
    assert report["detail"]
    assert mount.status()["warned"] == 1


def test_counts_of_status(mount):
    """status counts wrong and incomplete files, by name once each."""
    errno_of(write_file, mount.dir / "a.safetensors", WRONG.content)
    errno_of(write_file, mount.dir / "b.safetensors", WRONG.content)
    write_file(mount.dir / "c.safetensors", INCOMPLETE.content)
    write_file(mount.dir / "d.safetensors", GOOD)
    status = mount.wait_sealed()
    assert (status["wrong"], status["incomplete"], status["files"]) == (2, 1, 4)


def test_the_reason_survives_a_remount(mount):
    path = mount.dir / NAME
    errno_of(write_file, path, WRONG.content)
    mount.remount()
    assert error_of(path).startswith(WRONG.reason + ": ")
    assert mount.reports()["/" + NAME]["verdict"] == "wrong"


def test_a_reader_may_close(mount):
    """The error is the writer's: who only read a wrong file closes it without one."""
    path = mount.dir / NAME
    errno_of(write_file, path, WRONG.content)
    with open(path, "rb") as f:
        assert f.read() == WRONG.content


def test_made_right_later(mount):
    """A wrong file that is written again and right then has no reason any more."""
    path = mount.dir / NAME
    errno_of(write_file, path, WRONG.content)
    mount.wait_sealed()
    write_file(path, GOOD)
    assert_good(mount, path)
    assert mount.status()["wrong"] == 0


def test_made_wrong_later(mount):
    """Writing into a valid shard in place is judged at that close."""
    path = mount.dir / NAME
    write_file(path, GOOD)
    mount.wait_sealed()
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, b"\xff" * 8, 0)
    assert errno_of(os.close, fd) == errno.EBADMSG
    assert error_of(path).startswith("header-too-large: ")


@pytest.mark.parametrize("name", ["model.bin", "model.safetensors.tmp", ".safetensors", "safetensors",
                                  "model.SAFETENSORS", "x.safetensors~"])
def test_other_names_are_not_held_to_anything(mount, name):
    """The gate is for names that end in .safetensors, and have something before it."""
    path = mount.dir / name
    write_file(path, WRONG.content)
    assert error_of(path) is None
    assert read_file(path) == WRONG.content
    mount.wait_sealed()
    assert mount.status()["wrong"] == 0


# ---- rename ----

def save_like_0_8(path, content):
    """safetensors >= 0.8: a temporary file, its size first, renamed while open, then closed."""
    temporary = path.with_name(".tmpAbCdEf")
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, len(content))
        write_all(fd, content)
        os.rename(temporary, path)
    finally:
        os.close(fd)


@refused
def test_renamed_into_place(mount, case):
    """A wrong or incomplete file does not become a shard by rename; its bytes stay where they were."""
    temporary, path = mount.dir / "x.tmp", mount.dir / NAME
    write_file(temporary, case.content)
    assert errno_of(os.rename, temporary, path) == errno.EBADMSG
    assert not path.exists()
    assert_reported(mount, temporary, case)


@refused
def test_renamed_while_open(mount, case):
    """The same as safetensors 0.8 does it: at rename all is written, and the file still open."""
    path = mount.dir / NAME
    assert errno_of(save_like_0_8, path, case.content) == errno.EBADMSG
    assert sorted(os.listdir(mount.dir)) == [".tmpAbCdEf"]
    assert_reported(mount, mount.dir / ".tmpAbCdEf", case)


@refused
def test_a_valid_shard_is_not_replaced(mount, case):
    """Where the rename is refused the shard that was there stays, byte for byte."""
    temporary, path = mount.dir / "x.tmp", mount.dir / NAME
    write_file(path, GOOD)
    inode = path.stat().st_ino
    write_file(temporary, case.content)
    assert errno_of(os.rename, temporary, path) == errno.EBADMSG
    assert_good(mount, path)
    assert path.stat().st_ino == inode


def test_a_valid_shard_is_not_replaced_once_sealed(mount):
    """The same for every class when the good shard is sealed already, and after a remount."""
    for case in shards.REFUSED_AT_RENAME:
        write_file(mount.dir / f"{case.name}.safetensors", GOOD)
    mount.wait_sealed()
    for settle in (lambda: None, mount.remount):
        settle()
        for case in shards.REFUSED_AT_RENAME:
            temporary, path = mount.dir / "x.tmp", mount.dir / f"{case.name}.safetensors"
            write_file(temporary, case.content)
            assert errno_of(os.rename, temporary, path) == errno.EBADMSG
            assert_good(mount, path)


@accepted
def test_accepted_by_rename(mount, case):
    """What is valid or opaque becomes a shard, new or over another, open or closed."""
    path, other = mount.dir / NAME, mount.dir / "other.safetensors"
    write_file(other, GOOD)
    save_like_0_8(path, case.content)
    save_like_0_8(other, case.content)
    assert read_file(path) == read_file(other) == case.content
    assert sorted(os.listdir(mount.dir)) == [NAME, "other.safetensors"]


def test_a_shard_may_move(mount):
    """From shard name to shard name all may move: nothing becomes a shard that was none."""
    for number, content in enumerate([GOOD, WRONG.content, INCOMPLETE.content]):
        source, target = mount.dir / f"{number}.safetensors", mount.dir / f"moved-{number}.safetensors"
        errno_of(write_file, source, content)
        os.rename(source, target)
        assert read_file(target) == content


@pytest.mark.parametrize("case", [WRONG, INCOMPLETE], ids=case_id)
def test_a_bad_shard_does_not_replace_a_good_one(mount, case):
    """A shard's name is no way around: a valid shard is never replaced by an invalid one."""
    bad, good = mount.dir / "bad.safetensors", mount.dir / NAME
    write_file(good, GOOD)
    errno_of(write_file, bad, case.content)
    assert errno_of(os.rename, bad, good) == errno.EBADMSG
    assert_good(mount, good)
    assert read_file(bad) == case.content


def test_a_good_shard_replaces_a_bad_one(mount):
    bad, temporary = mount.dir / NAME, mount.dir / "x.tmp"
    errno_of(write_file, bad, WRONG.content)
    write_file(temporary, GOOD)
    os.rename(temporary, bad)
    assert_good(mount, bad)
    assert mount.status()["wrong"] == 0


def test_noreplace_is_judged_too(mount):
    temporary = mount.dir / "x.tmp"
    write_file(temporary, WRONG.content)
    assert errno_of(renameat2, temporary, mount.dir / NAME, RENAME_NOREPLACE) == errno.EBADMSG
    write_file(mount.dir / NAME, GOOD)
    assert errno_of(renameat2, temporary, mount.dir / NAME, RENAME_NOREPLACE) == errno.EEXIST


@pytest.mark.parametrize("case", [WRONG, INCOMPLETE], ids=case_id)
@pytest.mark.parametrize("shard_first", [True, False])
def test_exchange_is_judged_both_ways(mount, case, shard_first):
    """RENAME_EXCHANGE brings no bad file onto a shard's name, whichever is named first."""
    temporary, path = mount.dir / "x.tmp", mount.dir / NAME
    write_file(temporary, case.content)
    write_file(path, GOOD)
    pair = (path, temporary) if shard_first else (temporary, path)
    assert errno_of(renameat2, *pair, RENAME_EXCHANGE) == errno.EBADMSG
    assert_good(mount, path)
    assert read_file(temporary) == case.content


def test_exchange_of_good_ones(mount):
    temporary, path = mount.dir / "x.tmp", mount.dir / NAME
    other = shards.valid(99)
    write_file(temporary, other)
    write_file(path, GOOD)
    renameat2(temporary, path, RENAME_EXCHANGE)
    assert_good(mount, path, other)
    assert read_file(temporary) == GOOD


def test_a_directory_may_have_such_a_name(mount):
    """Only regular files are held to it: directories and links of that name come and go."""
    os.mkdir(mount.dir / "a.safetensors")
    os.rename(mount.dir / "a.safetensors", mount.dir / "b.safetensors")
    os.symlink("nowhere", mount.dir / "c.tmp")
    os.rename(mount.dir / "c.tmp", mount.dir / "c.safetensors")


# ---- hard links ----

@refused
def test_linked_onto_a_shard_name(mount, case):
    """link(2) is no way around the gate either."""
    temporary, path = mount.dir / "x.tmp", mount.dir / NAME
    write_file(temporary, case.content)
    assert errno_of(os.link, temporary, path) == errno.EBADMSG
    assert not path.exists() and temporary.stat().st_nlink == 1
    assert_reported(mount, temporary, case)


def test_good_files_may_be_linked(mount):
    temporary, path = mount.dir / "x.tmp", mount.dir / NAME
    write_file(temporary, GOOD)
    os.link(temporary, path)
    assert_good(mount, path)


def test_written_by_its_other_name(mount):
    """A file that has a shard's name among its names is judged whichever is used to write it."""
    path, other = mount.dir / NAME, mount.dir / "other.bin"
    write_file(path, GOOD)
    os.link(path, other)
    assert errno_of(write_file, other, WRONG.content) == errno.EBADMSG
    assert error_of(path).startswith(WRONG.reason)


# ---- incomplete, then whole ----

def test_consolidation_of_torch(mount):
    """torch's consolidation: header, close, reopen r+b, append. Incomplete meanwhile, valid at the end."""
    path = mount.dir / "model-00001-of-00001.safetensors"
    pieces = {name: random_bytes(seed, 100_001 + seed) for seed, name in enumerate("abcd")}
    whole = shards.shard(pieces, pad=False)
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    with open(path, "wb") as f:
        f.write(whole[:header])
    assert mount.reports()["/" + path.name]["verdict"] == "incomplete"
    assert error_of(path).startswith("data-short: ")
    mount.wait_sealed()
    assert mount.status()["incomplete"] == 1
    with open(path, "r+b") as f:
        f.seek(0, os.SEEK_END)
        for piece in pieces.values():
            f.write(piece)
    assert_good(mount, path, whole)
    status = mount.wait_sealed()
    assert (status["incomplete"], status["reports"]) == (0, [])
    assert_good(mount, path, whole)


def test_grown_by_appends(mount):
    """Appended to bit by bit, with a close each time, a file is incomplete until it is whole, then wrong."""
    path = mount.dir / NAME
    step = len(GOOD) // 5 + 1
    for at in range(0, len(GOOD), step):
        with open(path, "ab") as f:
            f.write(GOOD[at:at + step])
        expected = None if at + step >= len(GOOD) else "data-short"
        assert (error_of(path) or "").partition(":")[0] == (expected or "")
    assert_good(mount, path)
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"x")
    assert errno_of(os.close, fd) == errno.EBADMSG
    assert error_of(path).startswith("data-long: ")


# ---- validate=strict and validate=off ----

@every
def test_strict(unmounted, case):
    """validate=strict: incomplete files are refused at close, too."""
    unmounted.mount("validate=strict")
    path = unmounted.dir / NAME
    bad = case in shards.REFUSED_AT_RENAME
    assert errno_of(write_file, path, case.content) == (errno.EBADMSG if bad else 0)
    if bad:
        assert_reported(unmounted, path, case)


@every
def test_off(unmounted, case):
    """validate=off: nothing is refused, all is reported."""
    unmounted.mount("validate=off")
    path, renamed = unmounted.dir / NAME, unmounted.dir / "renamed.safetensors"
    write_file(path, case.content)
    save_like_0_8(renamed, case.content)
    assert read_file(path) == read_file(renamed) == case.content
    if case in shards.REFUSED_AT_RENAME:
        assert_reported(unmounted, path, case)
        assert_reported(unmounted, renamed, case)


# ---- what real savers make of it ----

def test_save_file_replaces(mount):
    """save_file over a shard: the new content under the name, and no temporary file."""
    numpy = pytest.importorskip("numpy")
    saver = pytest.importorskip("safetensors.numpy")
    path = mount.dir / NAME
    saver.save_file({"a": numpy.arange(10)}, path)
    before = read_file(path)
    saver.save_file({"a": numpy.arange(20)}, path)
    assert read_file(path) != before
    assert os.listdir(mount.dir) == [NAME]
    assert list(saver.load_file(path)["a"]) == list(range(20))


def test_rsync(mount, plain):
    """rsync says so when its rename is refused, and leaves the good shard alone."""
    source = plain / NAME
    source.write_bytes(GOOD)
    try:
        subprocess.run(["rsync", "-a", source, mount.dir], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no rsync here")
    assert_good(mount, mount.dir / NAME)
    assert os.stat(mount.dir / NAME).st_mtime_ns == os.stat(source).st_mtime_ns
    source.write_bytes(WRONG.content + b"more")
    done = subprocess.run(["rsync", "-a", "--checksum", source, mount.dir], capture_output=True, text=True)
    assert done.returncode != 0 and "Bad message" in done.stderr
    assert_good(mount, mount.dir / NAME)
