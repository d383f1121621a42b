"""`weightfs fsck --repair`: whatever was damaged, afterwards the store is clean, mounts, and lost nothing.

The oracle for each file that there was: it reads as before; or it says that it is damaged (EIO, and why);
or it has lost its name, and is in lost+found. Never other bytes. Whose rows and data files were not touched reads as
before, under its name.

FSCK_SEED and FSCK_ROUNDS: which random damage, and how much of it, for the long form.
"""

import errno
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import time

import pytest

from support.store_damage import DAMAGE, MORE_DAMAGE, fill, fill_more, fsck, mutate, overwrite_random_pages, touched_by
from support.mounts import mounted

SEED = int(os.environ.get("FSCK_SEED", "1"))
ROUNDS = int(os.environ.get("FSCK_ROUNDS", "200"))
SHORT_ROUNDS = 4
OTHER = 54321, 54321  # owner and group of a store that root repairs
LIB = pathlib.Path(__file__).parents[2] / "lib"
CHECKS = ["fsck_names", "fsck_content", "fsck_data", "fsck_bytes", "fsck_schema"]


@pytest.fixture(scope="module")
def sound_store(weightfs, watchdog, tmp_path_factory):
    """A store with one of everything, unmounted, and what is in it; not to be changed."""
    with mounted(weightfs, watchdog, tmp_path_factory.mktemp("repair")) as m:
        fill(m.dir)
        fill_more(m.dir)
        m.wait_sealed()
        m.run("repack", m.dir / "more" / "model.safetensors")
        fill_dirty(m.dir)
        files = read_tree(m.dir)
        m.umount()
    return m.store, files


def fill_dirty(root):
    """A file of holes stays dirty, and has a staging file."""
    with open(root / "dirty.bin", "wb") as f:
        f.truncate(20 << 30)
        f.write(b"begin")


DAMAGED = "damaged"


def read_tree(root):
    """{relative path: sha256 of the file, DAMAGED where it says so, or what else it is}."""
    files = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            files[name] = "link to " + os.readlink(path)
        elif path.is_file():
            files[name] = read_file(path)
        else:
            files[name] = "directory" if path.is_dir() else "special"
    return files


def read_file(path):
    try:
        with open(path, "rb") as f:
            # The dirty one has 20 GiB of holes.
            return hashlib.sha256(f.read(1 << 24)).hexdigest()
    except OSError as error:
        assert error.errno == errno.EIO, (path, error)
        assert os.getxattr(path, "user.weightfs.error"), path
        return DAMAGED


def copy_store(store, to):
    shutil.copytree(store, to, symlinks=True, ignore=shutil.ignore_patterns("control", "before-repair-*"),
                    copy_function=copy_sparse)
    return to


def copy_sparse(source, to):
    subprocess.run(["cp", "--sparse=always", "--preserve=mode", source, to], check=True)


def run_repair(weightfs, store, *options):
    done = subprocess.run([str(weightfs), "fsck", "--repair", "--json", *options, str(store)],
                          capture_output=True, text=True, timeout=240)
    assert done.returncode in (0, 1), (done.returncode, done.stderr)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def store_bytes(store):
    return {str(path.relative_to(store)): path.read_bytes() if path.is_file() and not path.is_symlink()
            and path.stat().st_size < 1 << 30 else None
            for path in store.rglob("*") if path.name not in ("lock", "weightfs.db-shm", "weightfs.db-wal")}


def mount_and_read(weightfs, watchdog, base, store):
    """What is in a store; mounted, unmounted in order, and clean afterwards."""
    with mounted(weightfs, watchdog, base / "mounts", store=store) as m:
        files = read_tree(m.dir)
        m.umount()
    m.assert_clean()
    return files


def check_files(before, after, touched):
    """The oracle: `touched` are the paths that may be damaged or have lost their name."""
    contents = set(after.values())
    for name, content in before.items():
        if name not in touched:
            assert after.get(name) == content, f"{name} was not touched"
        elif name in after:
            assert after[name] in (content, DAMAGED), f"{name} reads as something else"
        else:
            assert content in contents or content in ("directory", "special") or content.startswith("link"), (
                f"{name} lost its name and is nowhere")


def repair_and_check(weightfs, watchdog, base, store, before, touched):
    """Repair, and hold the store to all that is promised; the answer of the repair and the files afterwards."""
    status, answer = run_repair(weightfs, store, "--bytes")
    assert (status, answer["repair"]["left"], answer["clean"]) == (0, [], True), answer["repair"]
    assert (answer["repair"]["kept"] is not None) == bool(answer["findings"])
    assert all(a["kind"] and a["where"] and a["text"] for a in answer["repair"]["actions"])
    again = fsck(weightfs, store)
    assert again[0] == 0, again[1]["findings"]
    status, answer_again = run_repair(weightfs, store, "--bytes")
    assert (status, answer_again["findings"], answer_again["repair"]["actions"]) == (0, [], [])
    after = mount_and_read(weightfs, watchdog, base, store)
    check_files(before, after, touched)
    return answer, after


ALL_DAMAGE = [(d[0], d[1], d[2]) for d in DAMAGE] + MORE_DAMAGE


# One of each way to repair; all of them are for the long form.
SHORT = ["small-object-lost", "extent-moved", "object-row-lost", "manifest-two-rows-lost", "inode-lost",
         "directory-in-itself", "two-parents", "slash-in-a-name", "page-overwritten", "pack-removed", "pack-is-a-link",
         "file-of-nobody", "foreign-name", "staging-of-two", "whole-copy-cut", "attribute-of-nobody"]


def by_length():
    """Each damage, those that are not short marked as long."""
    return [pytest.param(*d[1:], id=d[0], marks=[] if d[0] in SHORT else [pytest.mark.long, pytest.mark.endurance]) for d in ALL_DAMAGE]


def test_every_kind_of_finding_has_its_damage():
    """Kinds, as the sources of the check name them."""
    sources = [path.read_text() for path in LIB.glob("fsck_*.c") if path.stem in CHECKS]
    named = r'\{\s*"([a-z-]+)",\s*WFS_FSCK_|wfs_fsck_report(?:_at)?\((?:\w+->)?run, "([a-z-]+)"'
    kinds = {a or b for text in sources for a, b in re.findall(named, text)}
    assert len(kinds) > 40
    assert kinds == {d[1] for d in ALL_DAMAGE}


@pytest.mark.parametrize("kind, damage", by_length())
def test_every_kind_is_found_and_repaired(weightfs, watchdog, sound_store, tmp_path, kind, damage):
    store, before = copy_store(sound_store[0], tmp_path / "damaged"), sound_store[1]
    sound = touched_by(store)
    damage(store)
    touched = sound.difference(store)
    damaged_bytes = store_bytes(store)

    status, planned = run_repair(weightfs, store, "--bytes", "--dry-run")
    assert status == 1 and kind in {f["kind"] for f in planned["findings"]}, planned["findings"]
    assert planned["repair"]["dry_run"] and planned["repair"]["actions"]
    assert store_bytes(store) == damaged_bytes, "a dry run changes nothing"

    answer, after = repair_and_check(weightfs, watchdog, tmp_path, store, before, touched)
    kept = store / answer["repair"]["kept"]
    assert (kept / "weightfs.db").read_bytes() == damaged_bytes["weightfs.db"], "the database as it was is kept"
    if any(name.startswith("lost+found/") for name in after):
        assert any(name.startswith("lost+found/fsck-") for name in after), "a text says why"


def test_undamaged_store_is_left_alone(weightfs, sound_store, tmp_path):
    store = copy_store(sound_store[0], tmp_path / "sound")
    before = store_bytes(store)
    status, answer = run_repair(weightfs, store, "--bytes")
    assert (status, answer["findings"], answer["repair"]["actions"], answer["repair"]["kept"]) == (0, [], [], None)
    assert store_bytes(store) == before


def test_store_in_use_is_refused(weightfs, mount):
    (mount.dir / "a").write_text("a")
    done = mount.run("fsck", "--repair", mount.store, check=False)
    assert done.returncode == 1 and "unmount it first" in done.stderr
    assert (mount.dir / "a").read_text() == "a"


def test_what_is_missing_as_a_whole_is_explained(weightfs, sound_store, tmp_path):
    """Without data/ (another disk, not mounted?) nothing is declared lost."""
    store = copy_store(sound_store[0], tmp_path / "damaged")
    (store / "data").rename(tmp_path / "elsewhere")
    done = subprocess.run([str(weightfs), "fsck", "--repair", str(store)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "put it back" in done.stderr
    (tmp_path / "elsewhere").rename(store / "data")
    assert fsck(weightfs, store)[0] == 0


@pytest.mark.parametrize("damage", ["object-row-lost", "data-file-stray", "database-lost"])
def test_owner_and_modes(weightfs, sound_store, tmp_path, damage):
    """What is made is for the owner alone; also when root repairs the store of somebody else."""
    store = copy_store(sound_store[0], tmp_path / "damaged")
    owner = OTHER if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    if damage == "database-lost":
        (store / "weightfs.db").write_bytes(b"not a database" * 1000)
    elif damage == "data-file-stray":
        (next((store / "data").iterdir()) / "what").write_bytes(b"a stray file")
    else:
        dict((d[0], d[2]) for d in DAMAGE)[damage](store)
    for path in [store, *store.rglob("*")]:
        os.chown(path, *owner)
    old = os.umask(0)
    try:
        status, answer = run_repair(weightfs, store, "--bytes")
    finally:
        os.umask(old)
    assert answer["repair"]["actions"], status
    for path in store.rglob("*"):
        at = path.lstat()
        assert (at.st_uid, at.st_gid) == owner, path
        assert at.st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_a_database_that_is_none(weightfs, watchdog, sound_store, tmp_path):
    """Without any row the bytes of the data files are in lost+found, and the old database is kept."""
    store, before = copy_store(sound_store[0], tmp_path / "damaged"), sound_store[1]
    (store / "weightfs.db").write_bytes(b"not a database" * 1000)
    status, answer = run_repair(weightfs, store, "--bytes")
    assert (status, answer["repair"]["left"]) == (0, [])
    after = mount_and_read(weightfs, watchdog, tmp_path, store)
    assert before["opaque.bin"] in after.values() and before["more/npy.bin"] in after.values()
    assert (store / answer["repair"]["kept"] / "weightfs.db").read_bytes() == b"not a database" * 1000


def test_the_way_back(weightfs, sound_store, tmp_path):
    """The database that was kept, put back, is the damaged store again."""
    store = copy_store(sound_store[0], tmp_path / "damaged")
    dict((d[0], d[2]) for d in DAMAGE)["object-row-lost"](store)
    found = fsck(weightfs, store)[1]["findings"]
    answer = run_repair(weightfs, store, "--bytes")[1]
    shutil.copy(store / answer["repair"]["kept"] / "weightfs.db", store / "weightfs.db")
    assert fsck(weightfs, store)[1]["findings"] == found


def test_a_repair_that_is_killed(weightfs, watchdog, sound_store, tmp_path):
    """Wherever it was: the next repair finds all that there was to repair, or nothing any more."""
    store, before = copy_store(sound_store[0], tmp_path / "damaged"), sound_store[1]
    sound = touched_by(store)
    by_name = dict((d[0], d[2]) for d in ALL_DAMAGE)
    for name in ("foreign-name", "file-of-nobody", "manifest-two-rows-lost", "name-dots"):
        by_name[name](store)
    touched = sound.difference(store)
    contents = (store / "data").glob("??/notes.txt")
    assert len(list(contents)) == 1
    for after in (0.0, 0.01, 0.02, 0.05, 0.1, 0.2):
        process = subprocess.Popen([str(weightfs), "fsck", "--repair", "--bytes", str(store)],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(after)
        process.kill()
        process.wait()
    status, answer = run_repair(weightfs, store, "--bytes")
    assert (status, answer["repair"]["left"]) == (0, [])
    after = mount_and_read(weightfs, watchdog, tmp_path, store)
    check_files(before, after, touched)
    assert hashlib.sha256(b"not of weightfs\n").hexdigest() in after.values()
    assert hashlib.sha256(b"nobody's").hexdigest() in after.values()


def random_round(weightfs, watchdog, tmp_path, sound_store, seed):
    base = tmp_path / str(seed)
    base.mkdir()
    store, before = copy_store(sound_store[0], base / "damaged"), sound_store[1]
    rng = random.Random(seed)
    sound = touched_by(store)
    done = [mutate(store, rng) for _ in range(rng.choice([1, 1, 2, 3, 6]))]
    touched = sound.difference(store)
    try:
        repair_and_check(weightfs, watchdog, base, store, before, touched)
    except (AssertionError, subprocess.TimeoutExpired) as problem:
        raise AssertionError(f"seed {seed}: {done}") from problem
    shutil.rmtree(base)


def test_random_damage(weightfs, watchdog, sound_store, tmp_path):
    for seed in range(SEED, SEED + SHORT_ROUNDS):
        random_round(weightfs, watchdog, tmp_path, sound_store, seed)


@pytest.mark.endurance
@pytest.mark.long
@pytest.mark.timeout(7200)
def test_much_random_damage(weightfs, watchdog, sound_store, tmp_path):
    for seed in range(SEED, SEED + ROUNDS):
        random_round(weightfs, watchdog, tmp_path, sound_store, seed)


def page_round(weightfs, watchdog, tmp_path, sound_store, seed):
    """Pages of the database overwritten: rows are lost, and with them names, but no bytes of data files."""
    base = tmp_path / f"page-{seed}"
    base.mkdir()
    store, before = copy_store(sound_store[0], base / "damaged"), sound_store[1]
    overwrite_random_pages(store, random.Random(seed))
    status, answer = run_repair(weightfs, store, "--bytes")
    assert (status, answer["repair"]["left"]) == (0, []), (seed, answer["repair"])
    after = mount_and_read(weightfs, watchdog, base, store)
    for name, content in before.items():
        assert after.get(name) in (None, content, DAMAGED), f"seed {seed}: {name} reads as something else"
    shutil.rmtree(base)


def test_damaged_pages(weightfs, watchdog, sound_store, tmp_path):
    for seed in range(SEED, SEED + 2):
        page_round(weightfs, watchdog, tmp_path, sound_store, seed)


@pytest.mark.endurance
@pytest.mark.long
@pytest.mark.timeout(7200)
def test_many_damaged_pages(weightfs, watchdog, sound_store, tmp_path):
    for seed in range(SEED, SEED + ROUNDS):
        page_round(weightfs, watchdog, tmp_path, sound_store, seed)
