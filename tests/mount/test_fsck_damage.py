"""Damage done by hand to a store that the driver made: `weightfs fsck` finds each kind and names it."""

import os
import shutil
import subprocess

import pytest

from support.store_damage import DAMAGE, fill, flip_bit, fsck, sql
from support.files import random_bytes
from support.mounts import make_store, mounted


@pytest.fixture(scope="module")
def sound_store(weightfs, watchdog, tmp_path_factory):
    """A store with one of everything, unmounted; not to be changed."""
    return make_store(weightfs, watchdog, tmp_path_factory.mktemp("fsck"), fill)


@pytest.fixture
def store(sound_store, tmp_path):
    """A copy to be damaged."""
    copy = tmp_path / "damaged"
    shutil.copytree(sound_store, copy, symlinks=True, ignore=shutil.ignore_patterns("control"))
    return copy


def test_undamaged_copy_is_clean(weightfs, store):
    status, answer = fsck(weightfs, store)
    assert (status, answer["findings"], answer["clean"]) == (0, [], True)
    assert answer["summary"]["objects"] >= 6


@pytest.mark.parametrize("kind, damage, also, mentions", [d[1:] for d in DAMAGE], ids=[d[0] for d in DAMAGE])
def test_damage_is_found_and_named(weightfs, store, kind, damage, also, mentions):
    damage(store)
    status, answer = fsck(weightfs, store)
    findings = answer["findings"]
    assert (status, answer["clean"]) == (1, False)
    assert {f["kind"] for f in findings} - set(also.split()) == {kind}, findings
    assert any(mentions in f["where"] + " " + f["text"] for f in findings if f["kind"] == kind), findings
    assert all(f["where"] and f["text"] for f in findings)


def test_check_changes_no_byte(weightfs, store):
    flip_bit(store)
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    fsck(weightfs, store)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("damage, reason", [
    (lambda store: shutil.rmtree(store), "No such file or directory"),
    (lambda store: (store / "weightfs.db").unlink(), "weightfs.db"),
    (lambda store: (store / "weightfs.db").write_bytes(b"not a database" * 100), "not a database"),
    (sql("PRAGMA user_version = 99"), "99"),
    (sql("PRAGMA application_id = 1"), "weightfs"),
], ids=["missing", "no-database", "no-sqlite", "newer-version", "other-application"])
def test_no_store_is_refused_with_a_reason(weightfs, store, damage, reason):
    damage(store)
    done = subprocess.run([str(weightfs), "fsck", str(store)], capture_output=True, text=True, timeout=240)
    assert done.returncode not in (0, 2)
    assert reason in done.stderr
    assert done.stderr.count("\n") <= 2  # what is wrong, and what to do


def test_store_in_use_is_clean(mount):
    """What the driver passes through while it works is no damage."""
    fill(mount.dir)
    with open(mount.dir / "opaque.bin", "r+b") as held:
        os.unlink(mount.dir / "opaque.bin")
        for i in range(20):
            (mount.dir / f"more-{i}").write_bytes(random_bytes(100 + i, 100_000))
            answer = mount.fsck()
            assert answer["findings"] == []
        held.write(b"still there")


def test_ids_that_are_lost_cost_no_data_file(weightfs, watchdog, store, tmp_path):
    """Files behind the last id are left over from a crash, and removed; but not those that have a row."""
    sql("UPDATE sqlite_sequence SET seq = 0 WHERE name = 'data_file'")(store)
    before = sorted(path.name for path in (store / "data").rglob("*") if path.is_file())
    with mounted(weightfs, watchdog, tmp_path / "mounts", store=store) as m:
        m.umount()
    assert before and sorted(path.name for path in (store / "data").rglob("*") if path.is_file()) == before
