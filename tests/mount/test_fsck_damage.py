"""Damage done by hand to a store that the driver made: `weightfs fsck` finds each kind and names it."""

import json
import os
import shutil
import sqlite3
import subprocess

import pytest

from support.files import random_bytes
from support.mounts import Mount
from support.shards import shard

PACKED = 300_000  # bytes of a tensor: too large for the database


@pytest.fixture(scope="module")
def sound_store(weightfs, watchdog, tmp_path_factory):
    """A store with one of everything, unmounted; not to be changed."""
    m = Mount(weightfs, tmp_path_factory.mktemp("fsck"), watchdog, 120).mount()
    try:
        fill(m.dir)
        m.wait_sealed()
        m.umount()
    finally:
        m.end()
    return m.store


def fill(root):
    model = root / "run" / "checkpoint-1"
    model.mkdir(parents=True)
    tensors = {name: random_bytes(seed, PACKED) for seed, name in enumerate("abc")}
    (model / "model-00001-of-00002.safetensors").write_bytes(shard(tensors))
    tensors["c"] = random_bytes(9, PACKED)
    (model / "model-00002-of-00002.safetensors").write_bytes(shard(tensors))
    (model / "config.json").write_text('{"model_type": "none"}\n')
    (model / "empty").touch()
    (root / "opaque.bin").write_bytes(random_bytes(20, PACKED))
    os.link(model / "config.json", root / "hard")
    os.symlink("run/checkpoint-1", root / "latest")
    (root / "twice.json").write_text('{"model_type": "none"}\n')
    os.mkfifo(root / "fifo")


@pytest.fixture
def store(sound_store, tmp_path):
    """A copy to be damaged."""
    copy = tmp_path / "damaged"
    shutil.copytree(sound_store, copy, symlinks=True, ignore=shutil.ignore_patterns("control"))
    return copy


def fsck(weightfs, store):
    """(exit status, answer) of a check that reads the bytes, too."""
    done = subprocess.run([str(weightfs), "fsck", str(store), "--bytes", "--json"],
                          capture_output=True, text=True, timeout=240)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def run_sql(store, *statements):
    db = sqlite3.connect(store / "weightfs.db")
    db.execute("PRAGMA ignore_check_constraints = ON")
    for statement in statements:
        db.execute(statement)
    db.commit()
    db.close()


def ask(store, query):
    db = sqlite3.connect(store / "weightfs.db")
    row = db.execute(query).fetchone()
    db.close()
    assert row, f"the store has no row for: {query}"
    return row


def sql(*statements):
    return lambda store: run_sql(store, *statements)


# ---- damage to the data files ----

LARGE = "SELECT id, data_file, offset, length FROM object WHERE length = 300000 ORDER BY data_file, offset"


def data_path(store, file_id):
    return store / "data" / f"{file_id & 0xff:02x}" / f"{file_id:016x}"


def some_pack(store):
    return data_path(store, ask(store, "SELECT min(id) FROM data_file WHERE state = 1")[0])


def flip_bit(store):
    _, file_id, offset, length = ask(store, LARGE)
    with open(data_path(store, file_id), "r+b") as f:
        f.seek(offset + length // 2)
        byte = f.read(1)[0]
        f.seek(-1, os.SEEK_CUR)
        f.write(bytes([byte ^ 0x10]))


def zero_extent(store):
    _, file_id, offset, length = ask(store, LARGE)
    with open(data_path(store, file_id), "r+b") as f:
        f.seek(offset)
        f.write(bytes(length))


def cut_pack(store):
    pack = some_pack(store)
    os.truncate(pack, pack.stat().st_size // 2)


def remove_pack(store):
    some_pack(store).unlink()


def link_pack(store):
    pack = some_pack(store)
    pack.rename(store / "elsewhere")
    pack.symlink_to(store / "elsewhere")


def add_stray(store):
    path = data_path(store, 0xABCDEF)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"nobody's")


def add_foreign_name(store):
    (some_pack(store).parent / "notes.txt").write_text("not of weightfs\n")


def overwrite_page(store):
    """Overwrite the root page of an index: the tables stay readable."""
    page, size = ask(store, "SELECT rootpage, (SELECT page_size FROM pragma_page_size) "
                            "FROM sqlite_schema WHERE name = 'dirent_by_parent'")
    with open(store / "weightfs.db", "r+b") as f:
        f.seek((page - 1) * size)
        f.write(random_bytes(5, size))


SMALL_OBJECT = "(SELECT min(object) FROM object_bytes)"
LARGE_OBJECT = "(SELECT max(id) FROM object WHERE length = 300000)"
CONFIG = "(SELECT ino FROM dirent WHERE name = CAST('config.json' AS BLOB))"
DIRECTORY = "(SELECT ino FROM dirent WHERE name = CAST('checkpoint-1' AS BLOB))"
LINK = "(SELECT ino FROM dirent WHERE name = CAST('latest' AS BLOB))"

# name, kind, what is done, kinds that may come with it, what a finding of that kind must mention
DAMAGE = [
    ("object-count", "object-refs", sql(f"UPDATE object SET refs = refs + 1 WHERE id = {LARGE_OBJECT}"), "", ""),
    ("small-object-lost", "object-place", sql(f"DELETE FROM object_bytes WHERE object = {SMALL_OBJECT}"), "", ""),
    ("small-object-changed", "object-digest",
     sql(f"UPDATE object_bytes SET bytes = zeroblob(length(bytes)) WHERE object = {SMALL_OBJECT}"), "", "/"),
    ("small-object-cut", "object-bytes",
     sql(f"UPDATE object_bytes SET bytes = substr(bytes, 2) WHERE object = {SMALL_OBJECT}"), "object-digest", ""),
    ("extent-moved", "extent-overlap",
     sql("UPDATE object SET offset = offset - 1 WHERE id = (SELECT b.id FROM object a JOIN object b"
         " ON b.data_file = a.data_file AND b.offset = a.offset + a.length LIMIT 1)"), "object-digest manifest-solid", ""),
    ("extent-far-away", "extent-beyond-end",
     sql(f"UPDATE object SET offset = offset + (1 << 40) WHERE id = {LARGE_OBJECT}"), "object-digest manifest-solid", ""),
    ("object-row-lost", "dangling-reference", sql(f"DELETE FROM object WHERE id = {LARGE_OBJECT}"),
     "data-file-empty", "object"),
    ("manifest-count", "manifest-refs",
     sql(f"UPDATE manifest SET refs = refs + 1 WHERE id = (SELECT manifest FROM inode WHERE ino = {CONFIG})"), "",
     ""),
    ("manifest-row-lost", "manifest-rows",
     sql("DELETE FROM manifest_object WHERE seq = 1 AND manifest = (SELECT min(manifest)"
         " FROM manifest_object WHERE seq = 2)"), "object-refs manifest-size manifest-digest manifest-solid", ""),
    ("manifest-digest", "manifest-digest", sql("UPDATE manifest SET digest = zeroblob(16) WHERE id ="
                                               " (SELECT min(id) FROM manifest)"), "", ""),
    ("file-size", "inode-size", sql(f"UPDATE inode SET size = size + 1 WHERE ino = {CONFIG}"), "", "content is 23"),
    ("file-links", "nlink", sql(f"UPDATE inode SET nlink = 1 WHERE ino = {CONFIG}"), "", "2 names"),
    ("directory-links", "nlink", sql(f"UPDATE inode SET nlink = 5 WHERE ino = {DIRECTORY}"), "",
     "/run/checkpoint-1"),
    ("hard-link-lost", "nlink", sql("DELETE FROM dirent WHERE name = CAST('hard' AS BLOB)"), "", "config.json"),
    ("unlinked-file-kept", "orphan",
     sql("UPDATE inode SET nlink = 0 WHERE ino = (SELECT ino FROM dirent WHERE name = CAST('empty' AS BLOB))",
         "DELETE FROM dirent WHERE name = CAST('empty' AS BLOB)"), "", ""),
    ("inode-lost", "dirent-dangling", sql(f"DELETE FROM inode WHERE ino = {CONFIG}"), "manifest-refs", "config.json"),
    ("entry-in-a-file", "dirent-parent",
     sql(f"UPDATE dirent SET parent = {CONFIG} WHERE name = CAST('empty' AS BLOB)"), "", "empty"),
    ("slash-in-a-name", "dirent-name",
     sql("UPDATE dirent SET name = CAST('../empty' AS BLOB) WHERE name = CAST('empty' AS BLOB)"), "", "../empty"),
    ("directory-in-itself", "directory-cycle",
     sql(f"UPDATE dirent SET parent = {DIRECTORY} WHERE name = CAST('run' AS BLOB)"), "nlink", "run"),
    ("no-such-type", "mode", sql(f"UPDATE inode SET mode = mode | 4096 WHERE ino = {CONFIG}"), "inode-content",
     "octal"),
    ("target-lost", "symlink", sql(f"UPDATE inode SET target = NULL WHERE ino = {LINK}"), "", "/latest"),
    ("verdict", "verdict", sql(f"UPDATE inode SET verdict = 17 WHERE ino = {CONFIG}"), "", "17"),
    ("left-to-remove", "data-file-pending", sql("INSERT INTO data_file (state) VALUES (2)"), "", "doomed"),
    ("ids-again", "sequence", sql("UPDATE sqlite_sequence SET seq = 1 WHERE name = 'inode'"), "", "inode"),
    ("index-dropped", "schema", sql("DROP INDEX dirent_by_ino"), "", "dirent_by_ino"),
    ("page-overwritten", "database", overwrite_page, "", ""),
    ("bit-flipped", "object-digest", flip_bit, "", "/"),
    ("extent-zeroed", "object-digest", zero_extent, "", "/"),
    ("pack-cut", "extent-beyond-end", cut_pack, "object-digest", ""),
    ("pack-removed", "data-file-missing", remove_pack, "object-digest", "data/"),
    ("pack-is-a-link", "data-file-stray", link_pack, "object-digest", "regular"),
    ("file-of-nobody", "data-file-stray", add_stray, "", "0000000000abcdef"),
    ("foreign-name", "data-file-stray", add_foreign_name, "", "notes.txt"),
]


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
