"""A store that somebody made to do harm: no crash, no hang, nothing outside of it touched, no memory out of proportion.

Each change is looked at by fsck and status, then mounted (with passthrough and without), walked, read, written and
unmounted. What the driver answers is EIO, another error of a file system, or a refusal to mount with a reason.

    WEIGHTFS_HOSTILE_SEEDS    seeds of the random changes, comma-separated (default: one)
    WEIGHTFS_HOSTILE_ROUNDS   changes for each seed (default 300)
"""

import os
import random
import shutil
import sqlite3
import struct

import pytest

from support import hostile
from support.hostile import change_without_index, run_sql
from support.mounts import data_path

SEEDS = [int(seed) for seed in os.environ.get("WEIGHTFS_HOSTILE_SEEDS", "1").split(",")]
ROUNDS = int(os.environ.get("WEIGHTFS_HOSTILE_ROUNDS", "300"))
WAYS = [("passthrough=on",), ("passthrough=off",)] if os.geteuid() == 0 else [()]

HUGE = [0, 1, -1, 1 << 31, 1 << 40, (1 << 63) - 1, -(1 << 63)]


@pytest.fixture(scope="module")
def clean_store(weightfs, watchdog, tmp_path_factory):
    return hostile.make_clean(weightfs, watchdog, tmp_path_factory.mktemp("clean"))


@pytest.fixture(scope="module")
def killed_store(weightfs, watchdog, tmp_path_factory):
    return hostile.make_killed(weightfs, watchdog, tmp_path_factory.mktemp("killed"))


@pytest.fixture
def user(weightfs, watchdog, tmp_path):
    h = hostile.Hostile(weightfs, watchdog, tmp_path)
    yield h
    h.end()


@pytest.fixture
def store(clean_store, tmp_path):
    return hostile.copy_store(clean_store, tmp_path / "store")


@pytest.fixture
def killed(killed_store, tmp_path):
    return hostile.copy_store(killed_store, tmp_path / "store")


def some_pack(store):
    db = sqlite3.connect(store / "weightfs.db")
    row = db.execute("SELECT data_file FROM object WHERE length = 300000 ORDER BY id LIMIT 1").fetchone()
    db.close()
    return data_path(store, row[0])


# ---- one value ----

FILE = "(SELECT ino FROM dirent WHERE name = CAST('opaque.bin' AS BLOB))"
SMALL = "(SELECT ino FROM dirent WHERE name = CAST('small.bin' AS BLOB))"
DIRECTORY = "(SELECT ino FROM dirent WHERE name = CAST('checkpoint-1' AS BLOB))"
LINK = "(SELECT ino FROM dirent WHERE name = CAST('latest' AS BLOB))"

VALUES = {
    **{f"offset-{n}": [f"UPDATE object SET offset = {n} WHERE data_file IS NOT NULL"] for n in HUGE},
    **{f"length-{n}": [f"UPDATE object SET length = {n} WHERE data_file IS NOT NULL"] for n in HUGE},
    **{f"small-length-{n}": [f"UPDATE object SET length = {n} WHERE data_file IS NULL"] for n in HUGE},
    **{f"manifest-size-{n}": [f"UPDATE manifest SET size = {n}"] for n in HUGE},
    **{f"manifest-objects-{n}": [f"UPDATE manifest SET objects = {n}"] for n in HUGE},
    **{f"data-file-{n}": [f"UPDATE object SET data_file = {n}, offset = 0"] for n in HUGE},
    **{f"staging-{n}": [f"UPDATE inode SET manifest = NULL, data_file = {n} WHERE ino = {FILE}"] for n in HUGE},
    **{f"inode-{n}": [f"UPDATE inode SET ino = {n} WHERE ino = {FILE}", f"UPDATE dirent SET ino = {n} WHERE name ="
                      " CAST('opaque.bin' AS BLOB)"] for n in HUGE if n != 1},
    **{f"inode-size-{n}": [f"UPDATE inode SET size = {n}, blocks = {n}"] for n in HUGE},
    **{f"times-{n}": [f"UPDATE inode SET atime_ns = {n}, mtime_ns = {n}, ctime_ns = {n}, btime_ns = {n}"] for n in HUGE},
    **{f"nlink-{n}": [f"UPDATE inode SET nlink = {n}"] for n in HUGE},
    **{f"owner-{n}": [f"UPDATE inode SET uid = {n}, gid = {n}, rdev = {n}"] for n in HUGE},
    **{f"entry-{n}": [f"UPDATE dirent SET id = {n} WHERE name = CAST('opaque.bin' AS BLOB)"] for n in HUGE if n != 1},
    **{f"refs-{n}": [f"UPDATE object SET refs = {n}", f"UPDATE manifest SET refs = {n}"] for n in HUGE},
    **{f"holes-{n}": [f"UPDATE data_file SET holes = {n}"] for n in HUGE},
    **{f"state-{n}": [f"UPDATE data_file SET state = {n}"] for n in [0, 2, 3, 4, *HUGE]},
    **{f"sequence-{n}": [f"UPDATE sqlite_sequence SET seq = {n}", "UPDATE meta SET value = 0 WHERE key = 'clean'"]
       for n in HUGE},
    **{f"whole-{n}": [f"UPDATE manifest SET whole = {n} WHERE id = (SELECT max(id) FROM manifest)",
                      f"UPDATE manifest SET solid = 1, shared = {n}"] for n in HUGE},
    **{f"verdict-{n}": [f"UPDATE inode SET verdict = {n}, reason = zeroblob(100000), detail = 7"] for n in HUGE},
    "all-solid": ["UPDATE manifest SET solid = 1"],
    "overlapping": ["UPDATE object SET offset = 100 WHERE data_file IS NOT NULL", "UPDATE data_file SET holes = 1"],
    "bytes-longer": ["UPDATE object_bytes SET bytes = zeroblob(1000000)"],
    "bytes-shorter": ["UPDATE object_bytes SET bytes = x'00'"],
    "bytes-empty": ["UPDATE object_bytes SET bytes = x''"],
    "bytes-text": ["UPDATE object_bytes SET bytes = 'text'"],
    "bytes-number": ["UPDATE object_bytes SET bytes = 12345"],
    "digests-short": ["UPDATE object SET digest = x'00' || id", "UPDATE manifest SET digest = x'01'"],
    "digests-text": ["UPDATE object SET digest = 'sixteen bytes of' || id", "UPDATE manifest SET digest = 1.5"],
    "digests-swapped": ["UPDATE object SET digest = randomblob(16)"],
    "types": ["UPDATE inode SET mode = 'text', size = 'text', uid = x'00', mtime_ns = 1e300"],
    "object-types": ["UPDATE object SET offset = 'text', length = 1e300, refs = x'ff' WHERE data_file IS NOT NULL"],
    "manifest-types": ["UPDATE manifest SET size = 'x', objects = 1.5, refs = 'y', solid = 'z'"],
    "meta-types": ["UPDATE meta SET value = zeroblob(1000000)", "INSERT OR REPLACE INTO meta VALUES ('passthrough', x'00ff')"],
    "meta-lost": ["DELETE FROM meta"],
    "root-lost": ["DELETE FROM inode WHERE ino = 1"],
    "root-a-file": ["UPDATE inode SET mode = 33188 WHERE ino = 1"],
    "root-a-link": ["UPDATE inode SET mode = 41471, target = x'2f' WHERE ino = 1"],
    "root-unlinked": ["UPDATE inode SET nlink = 0 WHERE ino = 1", "UPDATE meta SET value = 0 WHERE key = 'clean'"],
    "all-unlinked": ["UPDATE inode SET nlink = 0", "UPDATE meta SET value = 0 WHERE key = 'clean'"],
    "no-inodes": ["DELETE FROM inode WHERE ino > 1"],
    "no-objects": ["DELETE FROM object"],
    "no-bytes": ["DELETE FROM object_bytes"],
    "no-manifests": ["DELETE FROM manifest"],
    "no-rows-of-manifests": ["DELETE FROM manifest_object"],
    "fewer-rows-than-tensors": ["UPDATE manifest SET solid = 1 WHERE objects > 2", "DELETE FROM manifest_object WHERE seq > 1"],
    "no-data-files": ["DELETE FROM data_file"],
    "no-sequences": ["DELETE FROM sqlite_sequence", "UPDATE meta SET value = 0 WHERE key = 'clean'"],
}

# ---- names, directories, types ----

NAMES = {
    "slash": b"../../etc/passwd", "absolute": b"/etc/passwd", "dot": b".", "dots": b"..", "empty": b"", "nul": b"a\0b",
    "only-nul": b"\0", "long": b"n" * 300, "very-long": b"n" * 1_000_000, "bytes": bytes(range(128, 256)),
    "view": b".tensors", "view-of-shards": b".shards",
}

for name, raw in NAMES.items():
    VALUES[f"name-{name}"] = [f"UPDATE dirent SET name = x'{raw.hex()}' WHERE name = CAST('opaque.bin' AS BLOB)"]
    VALUES[f"directory-name-{name}"] = [f"UPDATE dirent SET name = x'{raw.hex()}' WHERE name = CAST('run' AS BLOB)"]
    VALUES[f"xattr-name-{name}"] = [f"UPDATE xattr SET name = x'{raw.hex()}' WHERE ino = {SMALL}"]
    VALUES[f"target-{name}"] = [f"UPDATE inode SET target = x'{raw.hex()}' WHERE ino = {LINK}"]

VALUES |= {
    "name-a-number": ["UPDATE dirent SET name = 12345 WHERE name = CAST('opaque.bin' AS BLOB)"],
    "name-a-text": ["UPDATE dirent SET name = 'opaque.bin' WHERE name = CAST('opaque.bin' AS BLOB)"],
    "target-a-number": [f"UPDATE inode SET target = 5 WHERE ino = {LINK}"],
    "target-null": [f"UPDATE inode SET target = NULL WHERE ino = {LINK}"],
    "target-huge": [f"UPDATE inode SET target = zeroblob(10000000) WHERE ino = {LINK}"],
    "xattr-huge": [f"UPDATE xattr SET value = zeroblob(10000000) WHERE ino = {SMALL}"],
    "xattrs-many": ["WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) INSERT INTO xattr"
                    f" SELECT {SMALL}, CAST('user.x' || i AS BLOB), x'00' FROM n"],
    "shard-size": ["UPDATE xattr SET value = x'00ff' WHERE name = CAST('user.weightfs.max_shard_size' AS BLOB)"],
    "directory-in-itself": [f"UPDATE dirent SET parent = {DIRECTORY} WHERE name = CAST('run' AS BLOB)"],
    "directory-is-its-child": [f"UPDATE dirent SET ino = parent WHERE ino = {DIRECTORY}"],
    "root-below-itself": [f"UPDATE dirent SET ino = 1 WHERE ino = {DIRECTORY}"],
    "two-parents": [f"INSERT INTO dirent (parent, name, ino) VALUES (1, CAST('again' AS BLOB), {DIRECTORY})"],
    "long-circle": [f"UPDATE dirent SET parent = {DIRECTORY} WHERE name = CAST('run' AS BLOB)",
                    "UPDATE dirent SET name = zeroblob(255) WHERE name = CAST('run' AS BLOB)",
                    f"UPDATE dirent SET parent = {DIRECTORY} WHERE name = CAST('opaque.bin' AS BLOB)",
                    "UPDATE inode SET verdict = 4, reason = 'wrong', detail = 'x'"],
    "entry-in-a-file": [f"UPDATE dirent SET parent = {FILE} WHERE name = CAST('small.bin' AS BLOB)"],
    "file-is-a-directory": [f"UPDATE inode SET mode = 16877 WHERE ino = {FILE}"],
    "file-is-a-link": [f"UPDATE inode SET mode = 41471 WHERE ino = {FILE}"],
    "file-is-a-device": [f"UPDATE inode SET mode = 25016, rdev = 1281 WHERE ino = {FILE}"],
    "file-is-nothing": [f"UPDATE inode SET mode = 0 WHERE ino = {FILE}"],
    "directory-is-a-file": [f"UPDATE inode SET mode = 33188 WHERE ino = {DIRECTORY}"],
    "directory-has-content": [f"UPDATE inode SET manifest = (SELECT max(id) FROM manifest) WHERE ino = {DIRECTORY}"],
    "link-has-content": [f"UPDATE inode SET manifest = 1, data_file = 1 WHERE ino = {LINK}"],
    "fifo-has-content": ["UPDATE inode SET manifest = 1, data_file = 1 WHERE ino = (SELECT ino FROM dirent WHERE name ="
                         " CAST('fifo' AS BLOB))"],
    "both-contents": ["UPDATE inode SET data_file = (SELECT max(id) FROM data_file) WHERE manifest IS NOT NULL"],
    "all-modes": ["UPDATE inode SET mode = 4294967295"],
    # ---- tensors that wait ----
    "tensor-of-nobody": [f"INSERT INTO tensor VALUES ({DIRECTORY}, x'', x'74', 999, 1, 'U8', '[1]', 0, 1)"],
    "tensor-far-away": [f"INSERT INTO tensor VALUES ({DIRECTORY}, x'', x'74', {FILE}, 1, 'U8', '[1]',"
                        " 9223372036854775807, 9223372036854775807)"],
    "tensor-negative": [f"INSERT INTO tensor VALUES ({DIRECTORY}, x'', x'74', {FILE}, 0, 'F32', '[-1]', -5, -5)"],
    "tensor-shape": [f"INSERT INTO tensor VALUES ({DIRECTORY}, x'', x'74', {FILE}, 1, 'U8', '[' || hex(zeroblob(100000)),"
                     " 0, 300000)"],
    "tensor-types": [f"INSERT INTO tensor VALUES ({DIRECTORY}, 5, 6, {FILE}, 'form', 7, 8, 0, 300000)"],
    "tensor-names": [f"INSERT INTO tensor VALUES ({DIRECTORY}, x'ff2f', x'ff002f2e2e', {FILE}, 1, 'U8', '[300000]', 0,"
                     " 300000)"],
    "tensor-of-itself": [f"INSERT INTO tensor SELECT {DIRECTORY}, x'', x'74', ino, 1, 'U8', '[1]', 0, 1 FROM dirent"
                         " WHERE name LIKE 'model-00001%'"],
    "tensor-in-a-file": [f"INSERT INTO tensor VALUES ({FILE}, x'', x'74', {FILE}, 1, 'U8', '[300000]', 0, 300000)"],
    "tensor-in-nothing": [f"INSERT INTO tensor VALUES (12345, x'', x'74', {FILE}, 1, 'U8', '[300000]', 0, 300000)"],
    "tensors-many": ["WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) INSERT INTO tensor"
                     f" SELECT i, x'', x'74', {FILE}, 1, 'U8', '[300000]', 0, 300000 FROM n"],
}

# ---- code in the schema ----

VALUES |= {
    "trigger-on-insert": ["CREATE TRIGGER t AFTER INSERT ON dirent BEGIN INSERT INTO dirent (parent, name, ino) SELECT parent,"
                          " randomblob(8), ino FROM dirent; END"],
    "trigger-on-meta": ["CREATE TRIGGER t BEFORE INSERT ON meta BEGIN SELECT RAISE(ABORT, 'planted'); END"],
    "trigger-for-ever": ["CREATE TRIGGER t AFTER INSERT ON meta BEGIN INSERT INTO meta WITH RECURSIVE n (i) AS (SELECT 1"
                         " UNION ALL SELECT i + 1 FROM n) SELECT i, zeroblob(1000000) FROM n; END"],
    "view-for-table": ["ALTER TABLE meta RENAME TO old", "CREATE VIEW meta AS SELECT key, value FROM old"],
    "view-for-ever": ["ALTER TABLE dirent RENAME TO old", "CREATE VIEW dirent AS WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL"
                      " SELECT i + 1 FROM n) SELECT i AS id, 1 AS parent, x'61' AS name, 2 AS ino FROM n"],
    "view-of-inodes": ["ALTER TABLE inode RENAME TO old", "CREATE VIEW inode AS SELECT * FROM old, old AS b, old AS c"],
    "check-that-costs": ["UPDATE sqlite_schema SET sql = replace(sql, 'value\n', 'value CHECK (length(hex(zeroblob("
                         "400000000))) > 0)\n') WHERE name = 'meta'"],
    "column-that-costs": ["UPDATE sqlite_schema SET sql = replace(sql, 'value\n', 'value, more AS (hex(zeroblob("
                          "400000000))) STORED\n') WHERE name = 'meta'"],
    "index-that-costs": ["CREATE INDEX costs ON meta (length(hex(zeroblob(100000))))",
                         "UPDATE sqlite_schema SET sql = replace(sql, '100000', '400000000') WHERE name = 'costs'"],
    "index-of-another": ["UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM sqlite_schema WHERE name = 'inode')"
                         " WHERE name = 'dirent_by_parent'"],
    "table-of-another": ["UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM sqlite_schema WHERE name = 'inode')"
                         " WHERE name = 'dirent'"],
    "table-beyond-end": ["UPDATE sqlite_schema SET rootpage = 1000000 WHERE name = 'manifest_object'"],
    "virtual-table": ["CREATE VIRTUAL TABLE planted USING fts5(x)"],
    "foreign-keys": ["PRAGMA foreign_keys = ON", "CREATE TABLE planted (x REFERENCES inode (ino) ON DELETE CASCADE)"],
    "other-columns": ["ALTER TABLE inode ADD COLUMN more DEFAULT 7"],
    "column-lost": ["ALTER TABLE dirent RENAME COLUMN name TO title"],
    "another-encoding": ["PRAGMA encoding = 'UTF-16'"],
    "version-huge": ["PRAGMA user_version = 2147483647"],
    "version-negative": ["PRAGMA user_version = -1"],
    "version-old": ["PRAGMA user_version = 1"],
}

# Behind the back of an index that the driver works through until it is empty.
LISTS = {
    "dead-for-ever": ("manifest_dead", ["UPDATE manifest SET refs = 0"], ["UPDATE manifest SET refs = 5"]),
    "dead-and-gone": ("manifest_dead", ["UPDATE manifest SET refs = 0"], ["DELETE FROM manifest"]),
    "orphans-for-ever": ("inode_orphan", ["UPDATE inode SET nlink = 0 WHERE ino > 1", "UPDATE meta SET value = 0 WHERE key"
                                          " = 'clean'"], ["UPDATE inode SET nlink = 1"]),
    "orphans-and-gone": ("inode_orphan", ["UPDATE inode SET nlink = 0 WHERE ino > 1", "UPDATE meta SET value = 0 WHERE key"
                                          " = 'clean'"], ["DELETE FROM inode WHERE ino > 1"]),
    "work-for-ever": ("data_file_work", ["UPDATE data_file SET state = 2"], ["UPDATE data_file SET state = 1"]),
    "work-and-gone": ("data_file_work", ["UPDATE data_file SET state = 2"], ["DELETE FROM data_file"]),
    "dirty-and-gone": ("inode_dirty", ["UPDATE inode SET manifest = NULL, data_file = 1 WHERE manifest IS NOT NULL"],
                       ["DELETE FROM inode WHERE ino > 1"]),
    "wholes-and-gone": ("manifest_by_whole", ["UPDATE manifest SET whole = id"], ["UPDATE manifest SET whole = 1"]),
    "names-and-gone": ("sqlite_autoindex_dirent_1", [], ["DELETE FROM dirent"]),
}


def change_listed(index, before, behind):
    def apply(store):
        run_sql(store, *before)
        if index.startswith("sqlite_"):
            run_sql(store, *behind)
        else:
            change_without_index(store, index, *behind)
    return apply


# ---- files of the store ----

def become_link(path, target):
    path.unlink()
    path.symlink_to(target)


def outside(store, content=b"nobody's business\n" * 30_000):
    path = store.parent / "outside.bin"
    path.write_bytes(content)
    return path


def pack_is_a_directory(store):
    path = some_pack(store)
    path.unlink()
    path.mkdir()


def pack_is_a_fifo(store):
    path = some_pack(store)
    path.unlink()
    os.mkfifo(path)


def pack_is_a_device(store):
    path = some_pack(store)
    path.unlink()
    os.mknod(path, 0o20666, os.makedev(1, 5))  # /dev/zero


def all_packs(store, replace):
    for path in (store / "data").glob("??/*"):
        replace(path)


def directory_is_a_link(store):
    """data/xx leads to a directory outside, in which the same names are."""
    directory = some_pack(store).parent
    directory.rename(store.parent / "outside")
    directory.symlink_to(store.parent / "outside")


def data_is_a_link(store):
    (store / "data").rename(store.parent / "outside")
    (store / "data").symlink_to(store.parent / "outside")


def huge_pack(store):
    os.truncate(some_pack(store), 1 << 43)


def replace_by_fifo(name):
    def apply(store):
        (store / name).unlink(missing_ok=True)
        os.mkfifo(store / name)
    return apply


def replace_by_directory(name):
    def apply(store):
        (store / name).unlink(missing_ok=True)
        (store / name).mkdir()
    return apply


def replace_by_link(name):
    def apply(store):
        (store / name).unlink(missing_ok=True)
        (store / name).symlink_to(outside(store))
    return apply


def journal_names_a_file(store):
    """A rollback journal whose super-journal is a file outside: SQLite removes that once it has played it back."""
    name = os.fsencode(outside(store))
    magic = bytes([0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7])
    pages = (store / "weightfs.db").stat().st_size // 4096
    head = magic + struct.pack(">IIIII", 0, 0, pages, 512, 4096)
    lock_page = (1 << 30) // 4096 + 1
    tail = struct.pack(">I", lock_page) + name + struct.pack(">II", len(name), sum(name)) + magic
    (store / "weightfs.db-journal").write_bytes(head.ljust(512, b"\0") + tail)
    (store / "weightfs.db-wal").unlink(missing_ok=True)


def cut(name, size):
    return lambda store: os.truncate(store / name, size)


FILES = {
    "pack-is-a-link": lambda store: become_link(some_pack(store), outside(store)),
    "pack-is-a-directory": pack_is_a_directory,
    "pack-is-a-fifo": pack_is_a_fifo,
    "packs-are-fifos": lambda store: all_packs(store, lambda p: (p.unlink(), os.mkfifo(p))),
    "packs-are-empty": lambda store: all_packs(store, lambda p: os.truncate(p, 0)),
    "packs-are-gone": lambda store: all_packs(store, os.unlink),
    "pack-is-huge": huge_pack,
    "directory-is-a-link": directory_is_a_link,
    "data-is-a-link": data_is_a_link,
    "journal-names-a-file": journal_names_a_file,
    **{f"{name}-is-a-fifo": replace_by_fifo(name) for name in
       ["weightfs.db", "weightfs.db-wal", "weightfs.db-shm", "weightfs.db-journal", "lock", "weightfs.log", "reserve",
        "weightfs.log.1"]},
    **{f"{name}-is-a-directory": replace_by_directory(name) for name in
       ["weightfs.db", "weightfs.db-wal", "weightfs.db-shm", "weightfs.db-journal", "lock", "weightfs.log", "reserve",
        "weightfs.log.1"]},
    **{f"{name}-is-a-link": replace_by_link(name) for name in
       ["weightfs.db", "weightfs.db-wal", "weightfs.db-shm", "weightfs.db-journal", "lock", "weightfs.log", "reserve",
        "weightfs.log.1"]},
    **{f"database-cut-{size}": cut("weightfs.db", size) for size in [0, 1, 99, 100, 4095, 4096, 8192, 20_000]},
}
if os.geteuid() == 0:
    FILES["pack-is-a-device"] = pack_is_a_device

CHANGES = {**{name: (lambda statements: lambda store: run_sql(store, *statements))(statements)
              for name, statements in VALUES.items()},
           **{name: change_listed(*what) for name, what in LISTS.items()},
           **FILES}

# What has done harm before: the short form.
QUICK = ["dead-for-ever", "orphans-for-ever", "trigger-for-ever", "view-for-ever", "check-that-costs", "long-circle",
         "entry-9223372036854775807", "pack-is-a-fifo", "weightfs.db-journal-is-a-fifo", "lock-is-a-fifo",
         "directory-is-a-link", "journal-names-a-file", "name-slash", "sequence-1"]


def check_outside(store, before):
    assert outside_of(store) == before, "a file outside of the store was changed"


def outside_of(store):
    """Each file beside the store that a change has put there."""
    return {path: path.read_bytes() for path in store.parent.glob("outside*/**/*") if path.is_file()} | {
        path: path.read_bytes() for path in store.parent.glob("outside.bin")}


def refuse_or_serve(user, store, ways=WAYS):
    before = outside_of(store)
    served = hostile.everything(user, store, options=ways)
    check_outside(store, before)
    return served


@pytest.mark.leaves_damage
@pytest.mark.parametrize("name", QUICK)
def test_quick(user, store, name):
    """A change that would hang, crash or mislead a driver that believes what it reads."""
    CHANGES[name](store)
    refuse_or_serve(user, store, WAYS[:1])


@pytest.mark.endurance
@pytest.mark.long
@pytest.mark.leaves_damage
@pytest.mark.parametrize("name", [name for name in CHANGES if name not in QUICK])
def test_each(user, store, name):
    CHANGES[name](store)
    refuse_or_serve(user, store)


# ---- any byte ----

def changeable(store):
    """Files of the store that an attacker would change, the larger ones no more often."""
    return sorted(path for path in store.rglob("*") if path.is_file() and not path.is_symlink()
                  and path.name not in ("lock", "control", "weightfs.log"))


def interesting(generator):
    """Bytes that mean something: to SQLite, to the format, to arithmetic."""
    return generator.choice([
        b"\0", b"\xff", generator.randbytes(1), generator.randbytes(generator.randrange(1, 9)), b"\xff" * 8, b"\0" * 8,
        struct.pack(">I", generator.randrange(200)), struct.pack(">H", generator.randrange(65536)),
        struct.pack(">q", generator.choice(HUGE)), struct.pack("<q", generator.choice(HUGE)), generator.randbytes(100),
        b"\0" * 4096])


def flip(store, generator):
    """Change some bytes somewhere, or the length of a file, or exchange two pages."""
    path = generator.choice(changeable(store))
    size = path.stat().st_size
    kind = generator.choice(["bytes"] * 8 + ["cut", "grow", "pages"])
    with open(path, "r+b") as f:
        if kind == "cut":
            f.truncate(generator.randrange(size + 1))
        elif kind == "grow":
            f.truncate(size + generator.choice([1, 4096, 1 << 20, 1 << 40]))
        elif kind == "pages" and size >= 8192:
            f.seek(generator.randrange(size // 4096) * 4096)
            page = f.read(4096)
            f.seek(generator.randrange(size // 4096) * 4096)
            f.write(page)
        else:
            for _ in range(generator.choice([1, 1, 2, 10])):
                f.seek(generator.randrange(max(1, size)))
                f.write(interesting(generator))


TABLES = ["meta", "object", "object_bytes", "manifest", "manifest_object", "data_file", "inode", "dirent", "xattr", "tensor",
          "sqlite_sequence"]


def flip_value(store, generator):
    """Change a column of a table, or delete or copy a row, without regard to what it means."""
    db = sqlite3.connect(store / "weightfs.db", isolation_level=None)
    try:
        for pragma in hostile.NONSENSE_PRAGMAS:
            db.execute(pragma)
        places = [(table, row[1]) for table in TABLES for row in db.execute(f"PRAGMA table_info ({table})")]
        if not places:
            return  # the schema was changed before
        table, column = generator.choice(places)
        value = generator.choice([*HUGE, None, "text", 1.5e300, b"", b"a/b\0", generator.randbytes(16),
                                  generator.randrange(64), generator.randrange(1 << 20)])
        rows = db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        one = f" WHERE {column} = (SELECT {column} FROM {table} ORDER BY 1 LIMIT 1 OFFSET {generator.randrange(rows + 1)})"
        where = generator.choice(["", one, one])
        db.execute(f"UPDATE OR REPLACE {table} SET {column} = ?{where}", (value,))
    except sqlite3.Error:
        pass  # NOT NULL; the next change will do
    finally:
        db.close()


def round_of(user, store, seed, base, serve=None):
    """One changed store, made from its seed alone; the seed is in the message of what fails."""
    generator = random.Random(seed)
    copy = hostile.copy_store(store, base / "changed")
    for _ in range(generator.choice([1, 1, 2, 5])):
        generator.choice([flip, flip_value])(copy, generator)
    try:
        (serve or hostile.everything)(user, copy, options=[generator.choice(WAYS)])
    except AssertionError as problem:
        raise AssertionError(f"seed {seed}: {problem}") from problem
    finally:
        shutil.rmtree(copy, ignore_errors=True)


@pytest.mark.leaves_damage
@pytest.mark.parametrize("kind", ["clean", "killed"])
def test_some_bytes(user, clean_store, killed_store, tmp_path, kind):
    """A few changes of any bytes and values."""
    for seed in range(6):
        round_of(user, clean_store if kind == "clean" else killed_store, f"short-{seed}", tmp_path)


@pytest.mark.endurance
@pytest.mark.long
@pytest.mark.leaves_damage
@pytest.mark.timeout(24 * 3600)
@pytest.mark.parametrize("kind", ["clean", "killed"])
@pytest.mark.parametrize("seed", SEEDS)
def test_any_bytes(user, clean_store, killed_store, tmp_path, seed, kind):
    for number in range(ROUNDS):
        (tmp_path / "round").write_text(f"{number}\n")  # for who looks at a long run
        round_of(user, clean_store if kind == "clean" else killed_store, f"{seed}-{number}", tmp_path)
