"""Damage done by hand to a store: by SQL, and to its files. `fill` makes what is damaged."""

import json
import os
import sqlite3
import subprocess

from support.files import random_bytes
from support.mounts import data_path
from support.shards import shard

PACKED = 300_000  # bytes of a tensor: too large for the database


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


# ---- what `weightfs fsck --repair` is shown beside that: also in files of other states ----

def fill_more(root):
    """A whole copy beside its parts, attributes, small files, links, an empty directory."""
    model = root / "more"
    model.mkdir()
    tensors = {name: random_bytes(seed, PACKED) for seed, name in enumerate("abc")}
    tensors["d"] = random_bytes(30, PACKED)
    (model / "model.safetensors").write_bytes(shard(tensors))
    (model / "npy.bin").write_bytes(random_bytes(31, 1_000_000))
    os.setxattr(model / "npy.bin", "user.note", b"kept")
    for i in range(5):
        (model / f"small-{i}").write_bytes(random_bytes(40 + i, 500 * (i + 1)))
    (model / "nothing").mkdir()
    (model / "deep" / "deeper").mkdir(parents=True)
    (model / "deep" / "deeper" / "file").write_bytes(random_bytes(50, 70_000))


def name_of(column, name):
    return f"(SELECT {column} FROM dirent WHERE name = CAST('{name}' AS BLOB))"


def swap_packs(store):
    packs = [data_path(store, file_id) for file_id in every(store, "SELECT id FROM data_file WHERE state = 1")][:2]
    packs[0].rename(store / "swap")
    packs[1].rename(packs[0])
    (store / "swap").rename(packs[1])


def every(store, query):
    db = sqlite3.connect(store / "weightfs.db")
    try:
        return [row[0] for row in db.execute(query)]
    finally:
        db.close()


def pack_in_wrong_directory(store):
    pack = some_pack(store)
    wrong = store / "data" / "fe"
    wrong.mkdir(exist_ok=True)
    pack.rename(wrong / pack.name)


def staging_path(store):
    return data_path(store, ask(store, "SELECT data_file FROM inode WHERE data_file IS NOT NULL")[0])


def add_fifo(store):
    os.mkfifo(some_pack(store).parent / ("9" * 14 + some_pack(store).parent.name))


def add_directory(store):
    (store / "data" / "zz" / "deep").mkdir(parents=True)
    (store / "data" / "zz" / "deep" / "file").write_bytes(b"somebody's")


def flip_whole_copy(store):
    """The part of a whole copy that lives elsewhere as an object."""
    pack, = ask(store, "SELECT m.whole FROM manifest m WHERE m.whole IS NOT NULL")
    size = data_path(store, pack).stat().st_size
    taken = [(a, a + n) for a, n in rows(store, f"SELECT offset, length FROM object WHERE data_file = {pack}")]
    at = next(at for at in range(1000, size, 1000) if not any(a <= at < b for a, b in taken))
    flip_byte(data_path(store, pack), at)


def rows(store, query):
    db = sqlite3.connect(store / "weightfs.db")
    try:
        return db.execute(query).fetchall()
    finally:
        db.close()


def flip_byte(path, at):
    with open(path, "r+b") as f:
        f.seek(at)
        byte = f.read(1)[0]
        f.seek(at)
        f.write(bytes([byte ^ 0xFF]))


def cut_whole_copy(store):
    path = data_path(store, ask(store, "SELECT whole FROM manifest WHERE whole IS NOT NULL")[0])
    os.truncate(path, path.stat().st_size - 1)


FILE = name_of("ino", "npy.bin")
FILE_MANIFEST = f"(SELECT manifest FROM inode WHERE ino = {FILE})"
FILE_OBJECT = f"(SELECT object FROM manifest_object WHERE manifest = {FILE_MANIFEST})"
FILE_PACK = f"(SELECT data_file FROM object WHERE id = {FILE_OBJECT})"
DIRTY = "(SELECT ino FROM inode WHERE data_file IS NOT NULL)"
STAGING = "(SELECT data_file FROM inode WHERE data_file IS NOT NULL)"
SHARD_MANIFEST = f"(SELECT manifest FROM inode WHERE ino = {name_of('ino', 'model-00001-of-00002.safetensors')})"
WHOLE = "(SELECT whole FROM manifest WHERE whole IS NOT NULL)"
DEEPER = name_of("ino", "deeper")

# name, kind, what is done
MORE_DAMAGE = [
    ("uid-is-text", "column-type", sql(f"UPDATE inode SET uid = 'root' WHERE ino = {CONFIG}")),
    ("manifest-is-text", "column-type", sql(f"UPDATE inode SET manifest = 'x' WHERE ino = {FILE}")),
    ("staging-is-text", "column-type", sql(f"UPDATE inode SET data_file = 'x' WHERE ino = {DIRTY}")),
    ("object-digest-short", "column-type", sql(f"UPDATE object SET digest = x'00' WHERE id = {FILE_OBJECT}")),
    ("object-offset-text", "column-type", sql(f"UPDATE object SET offset = 'x' WHERE id = {FILE_OBJECT}")),
    ("object-length-text", "column-type", sql(f"UPDATE object SET length = 'x' WHERE id = {FILE_OBJECT}")),
    ("object-length-wrong", "manifest-size", sql(f"UPDATE object SET length = length - 7 WHERE id = {FILE_OBJECT}")),
    ("list-row-text", "column-type",
     sql(f"UPDATE manifest_object SET object = 'x' WHERE manifest = {SHARD_MANIFEST} AND seq = 1")),
    ("entry-parent-text", "column-type", sql("UPDATE dirent SET parent = 'x' WHERE name = CAST('small-1' AS BLOB)")),
    ("entry-ino-text", "column-type", sql("UPDATE dirent SET ino = 'x' WHERE name = CAST('small-1' AS BLOB)")),
    ("size-negative", "inode-range", sql(f"UPDATE inode SET size = -1 WHERE ino = {FILE}")),
    ("directory-with-content", "inode-content",
     sql(f"UPDATE inode SET manifest = {FILE_MANIFEST} WHERE ino = {DEEPER}")),
    ("file-says-directory", "inode-content", sql(f"UPDATE inode SET mode = 16877 WHERE ino = {FILE}")),
    ("directory-says-file", "dirent-parent", sql(f"UPDATE inode SET mode = 33188 WHERE ino = {DEEPER}")),
    ("manifest-and-staging", "inode-content",
     sql(f"UPDATE inode SET manifest = {FILE_MANIFEST} WHERE ino = {DIRTY}")),
    ("file-with-a-target", "inode-content", sql(f"UPDATE inode SET target = x'61' WHERE ino = {FILE}")),
    ("target-too-long", "symlink", sql(f"UPDATE inode SET target = zeroblob(5000) WHERE ino = {LINK}")),
    ("link-size", "symlink", sql(f"UPDATE inode SET size = 3 WHERE ino = {LINK}")),
    ("damaged-without-reason", "verdict", sql(f"UPDATE inode SET verdict = 5, reason = NULL WHERE ino = {FILE}")),
    ("verdict-of-a-directory", "verdict", sql(f"UPDATE inode SET verdict = 1 WHERE ino = {DEEPER}")),
    ("largest-inode-number", "id-range",
     sql(f"UPDATE inode SET ino = 9223372036854775807 WHERE ino = {FILE}",
         "UPDATE dirent SET ino = 9223372036854775807 WHERE name = CAST('npy.bin' AS BLOB)",
         "UPDATE xattr SET ino = 9223372036854775807")),
    ("largest-entry", "id-range",
     sql("UPDATE dirent SET id = 9223372036854775807 WHERE name = CAST('small-2' AS BLOB)")),
    ("content-of-another", "inode-size",
     sql(f"UPDATE inode SET manifest = (SELECT manifest FROM inode WHERE ino = {CONFIG}) WHERE ino = {FILE}")),
    ("content-not-there", "dangling-reference", sql(f"UPDATE inode SET manifest = 123456 WHERE ino = {FILE}")),
    ("manifest-lost", "dangling-reference", sql(f"DELETE FROM manifest WHERE id = {SHARD_MANIFEST}")),
    ("pack-row-lost", "dangling-reference", sql(f"DELETE FROM data_file WHERE id = {FILE_PACK}")),
    ("staging-row-lost", "dangling-reference", sql(f"DELETE FROM data_file WHERE id = {STAGING}")),
    ("whole-copy-row-lost", "dangling-reference", sql(f"UPDATE manifest SET whole = 123456 WHERE whole = {WHOLE}")),
    ("bytes-without-object", "dangling-reference",
     sql("INSERT INTO object_bytes (object, bytes) VALUES (123456, x'0102030405')")),
    ("object-without-row", "dangling-reference",
     sql(f"DELETE FROM object WHERE id = {SMALL_OBJECT}")),
    ("attribute-of-nobody", "dangling-reference",
     sql("INSERT INTO xattr (ino, name, value) VALUES (123456, x'757365722e61', x'6b657074')")),
    ("staging-says-pack", "staging-state", sql(f"UPDATE data_file SET state = 1 WHERE id = {STAGING}")),
    ("staging-is-a-pack", "staging-state", sql(f"UPDATE inode SET data_file = {FILE_PACK} WHERE ino = {DIRTY}")),
    ("staging-of-two", "staging-shared",
     sql(f"UPDATE inode SET manifest = NULL, data_file = {STAGING} WHERE ino = {FILE}")),
    ("root-lost", "root", sql("DELETE FROM inode WHERE ino = 1")),
    ("root-is-a-file", "root", sql("UPDATE inode SET mode = 33188 WHERE ino = 1")),
    ("root-is-named", "root", sql("INSERT INTO dirent (parent, name, ino) VALUES (1, x'61', 1)")),
    ("name-empty", "dirent-name", sql("UPDATE dirent SET name = x'' WHERE name = CAST('small-1' AS BLOB)")),
    ("name-dots", "dirent-name", sql("UPDATE dirent SET name = x'2e2e' WHERE name = CAST('small-1' AS BLOB)")),
    ("name-with-nul", "dirent-name", sql("UPDATE dirent SET name = x'610062' WHERE name = CAST('small-1' AS BLOB)")),
    ("name-too-long", "dirent-name", sql("UPDATE dirent SET name = zeroblob(300) WHERE name = CAST('small-1' AS BLOB)")),
    ("name-is-text", "dirent-name", sql("UPDATE dirent SET name = 'small-1' WHERE name = CAST('small-1' AS BLOB)")),
    ("directory-lost", "dirent-parent", sql(f"DELETE FROM inode WHERE ino = {DEEPER}")),
    ("directory-lost-with-name", "dirent-parent",
     sql(f"DELETE FROM inode WHERE ino = {DEEPER}", "DELETE FROM dirent WHERE name = CAST('deeper' AS BLOB)")),
    ("two-parents", "directory-names",
     sql(f"INSERT INTO dirent (parent, name, ino) VALUES (1, x'61', {DEEPER})")),
    ("directory-without-name", "directory-names", sql("DELETE FROM dirent WHERE name = CAST('deep' AS BLOB)")),
    ("file-without-name", "nlink", sql("DELETE FROM dirent WHERE name = CAST('small-3' AS BLOB)")),
    ("mark-without-reason", "damage", sql(f"INSERT INTO damage VALUES ({FILE_OBJECT}, 9, 0)")),
    ("mark-of-no-object", "damage", sql("INSERT INTO damage VALUES (999999, 1, 0)")),
    ("tensor-of-no-directory", "tensor",
     sql(f"INSERT INTO tensor VALUES ({FILE}, x'', x'61', NULL, 0, 'F32', '[1]', 0, 4)")),
    ("tensor-too-long", "tensor",
     sql(f"INSERT INTO tensor VALUES ({DEEPER}, x'', x'61', {FILE}, 0, 'F32', '[1]', 0, 400000000)")),
    ("tensor-counted", "nlink",
     sql(f"INSERT INTO tensor VALUES ({name_of('ino', 'nothing')}, x'', x'61', {FILE}, 0, 'F32', '[1]', 0, 4)")),
    ("attribute-name", "xattr", sql("UPDATE xattr SET name = zeroblob(300)")),
    ("attribute-large", "xattr", sql("UPDATE xattr SET value = zeroblob(70000)")),
    ("object-dead", "object-dead",
     sql(f"DELETE FROM manifest_object WHERE object = {FILE_OBJECT}", f"DELETE FROM manifest WHERE id = {FILE_MANIFEST}",
         f"UPDATE object SET refs = 0 WHERE id = (SELECT id FROM object WHERE length = 1000000)")),
    ("object-in-staging", "extent-not-pack", sql(f"UPDATE data_file SET state = 0 WHERE id = {FILE_PACK}")),
    ("object-in-doomed", "extent-not-pack", sql(f"UPDATE data_file SET state = 2 WHERE id = {FILE_PACK}")),
    ("object-in-two-places", "object-place",
     sql(f"INSERT INTO object_bytes (object, bytes) VALUES ({FILE_OBJECT}, x'01')")),
    ("extent-of-two", "extent-overlap",
     sql(f"UPDATE object SET (data_file, offset) = (SELECT data_file, offset FROM object WHERE id = {LARGE_OBJECT})"
         f" WHERE id = {FILE_OBJECT}")),
    ("manifest-dead", "manifest-dead",
     sql(f"UPDATE manifest SET refs = 0, digest = NULL WHERE id = {FILE_MANIFEST}",
         f"DELETE FROM inode WHERE ino = {FILE}", "DELETE FROM dirent WHERE name = CAST('npy.bin' AS BLOB)",
         "DELETE FROM xattr")),
    ("manifest-twice", "manifest-duplicate",
     sql(f"INSERT INTO manifest (id, digest, size, objects, refs) SELECT 1000, digest, size, objects, 1 FROM manifest"
         f" WHERE id = {FILE_MANIFEST}",
         f"INSERT INTO manifest_object SELECT 1000, seq, object FROM manifest_object WHERE manifest = {FILE_MANIFEST}",
         f"UPDATE object SET refs = refs + 1 WHERE id = {FILE_OBJECT}",
         "INSERT INTO inode SELECT 1000, mode, uid, gid, 1, rdev, size, blocks, atime_ns, mtime_ns, ctime_ns, btime_ns,"
         f" target, 1000, data_file, verdict, reason, detail FROM inode WHERE ino = {FILE}",
         "INSERT INTO dirent (parent, name, ino) VALUES (1, x'74776963652e62696e', 1000)")),
    ("manifest-order", "manifest-rows",
     sql(f"UPDATE manifest_object SET seq = -1 WHERE manifest = {SHARD_MANIFEST} AND seq = 0")),
    ("manifest-gap", "manifest-rows",
     sql(f"UPDATE manifest_object SET seq = 70 WHERE manifest = {SHARD_MANIFEST} AND seq = 3")),
    ("manifest-two-rows-lost", "manifest-rows",
     sql(f"DELETE FROM manifest_object WHERE manifest = {SHARD_MANIFEST} AND seq IN (1, 2)")),
    ("manifest-size", "manifest-size", sql(f"UPDATE manifest SET size = size + 1 WHERE id = {SHARD_MANIFEST}")),
    ("manifest-solid", "manifest-solid",
     sql("UPDATE manifest SET solid = 1 WHERE solid = 0 AND objects > 1")),
    ("whole-copy-staging", "whole-copy-not-pack", sql(f"UPDATE data_file SET state = 0 WHERE id = {WHOLE}")),
    ("whole-copy-cut", "whole-copy-size", cut_whole_copy),
    ("whole-copy-flipped", "whole-copy-digest", flip_whole_copy),
    ("data-file-state", "data-file-state", sql(f"UPDATE data_file SET state = 9 WHERE id = {FILE_PACK}")),
    ("data-file-holes", "data-file-state", sql(f"UPDATE data_file SET holes = -4 WHERE id = {FILE_PACK}")),
    ("empty-pack-row", "data-file-empty", sql("INSERT INTO data_file (state) VALUES (1)")),
    ("staging-of-nobody", "staging-orphan",
     sql("DELETE FROM inode WHERE data_file IS NOT NULL", "DELETE FROM dirent WHERE name = CAST('dirty.bin' AS BLOB)")),
    ("filling-left", "data-file-pending", sql("INSERT INTO data_file (state) VALUES (3)")),
    ("ids-without-end", "sequence", sql("UPDATE sqlite_sequence SET seq = 9223372036854775807 WHERE name = 'dirent'")),
    ("ids-gone", "sequence", sql("DELETE FROM sqlite_sequence")),
    ("clean-of-no-kind", "meta", sql("UPDATE meta SET value = 'maybe' WHERE key = 'clean'")),
    ("table-lost", "schema", sql("DROP TABLE xattr")),
    ("column-renamed", "schema", sql("ALTER TABLE xattr RENAME COLUMN value TO val")),
    ("trigger-added", "schema",
     sql("CREATE TRIGGER evil AFTER UPDATE ON inode BEGIN DELETE FROM dirent; END")),
    ("staging-removed", "data-file-missing", lambda store: staging_path(store).unlink()),
    ("packs-swapped", "object-digest", swap_packs),
    ("pack-in-wrong-directory", "data-file-stray", pack_in_wrong_directory),
    ("fifo-in-data", "data-file-stray", add_fifo),
    ("directory-in-data", "data-file-stray", add_directory),
]


# ---- which files some damage has touched ----

KEYS = {"dirent": "id", "inode": "ino", "manifest": "id", "object": "id", "object_bytes": "object", "data_file": "id"}


class Snapshot:
    """Every row and data file that each path of a store depends on."""

    def __init__(self, store):
        self.rows = snapshot_rows(store)
        self.files = snapshot_files(store)
        self.paths = {path: self.needs(chain) for path, chain in self.walk()}

    def walk(self):
        """(path, [entries that lead to it]) for every path."""
        children = {}
        for row in self.rows["dirent"].values():
            children.setdefault(row[1], []).append(row)
        todo = [("", 1, [])]
        while todo:
            path, ino, chain = todo.pop()
            for row in children.get(ino, ()):
                below = f"{path}/{os.fsdecode(row[2])}".lstrip("/")
                yield below, [*chain, row]
                todo.append((below, row[3], [*chain, row]))

    def needs(self, chain):
        needs = [("dirent", row[0]) for row in chain] + [("inode", 1)] + [("inode", row[3]) for row in chain]
        manifest, data_file = self.rows["inode"][chain[-1][3]][-5:-3]
        needs += self.data(data_file) + ([("manifest", manifest), ("list", manifest)] if manifest else [])
        if manifest:
            needs += self.data(self.rows["manifest"][manifest][5])
        for _, _, object_id in self.rows["list"].get(manifest, ()):
            needs += [("object", object_id), ("object_bytes", object_id)]
            needs += self.data(self.rows["object"][object_id][5])
        return set(needs)

    def data(self, file_id):
        return [("data_file", file_id), ("file", file_id)] if file_id else []

    def difference(self, store):
        """The paths that depend on what is not as it was."""
        now, files = snapshot_rows(store), snapshot_files(store)
        changed = {(table, key) for table in self.rows for key in self.rows[table].keys() | now[table].keys()
                   if self.rows[table].get(key) != now[table].get(key)}
        changed |= {("file", key) for key in self.files.keys() | files.keys() if self.files.get(key) != files.get(key)}
        return {path for path, needs in self.paths.items() if needs & changed}


def snapshot_rows(store):
    tables = {}
    for table, key in KEYS.items():
        tables[table] = {row[0]: row[1:] for row in rows(store, f"SELECT {key}, * FROM {table} NOT INDEXED")}
    lists = {}
    for row in rows(store, "SELECT manifest, seq, object FROM manifest_object ORDER BY 1, 2"):
        lists.setdefault(row[0], []).append(row)
    tables["list"] = lists
    return tables


def snapshot_files(store):
    """{id of a data file: what is there}; sparse ones by their size and first bytes."""
    files = {}
    for path in (store / "data").glob("??/*"):
        try:
            file_id = int(path.name, 16)
        except ValueError:
            continue
        right = path == data_path(store, file_id) and path.is_file() and not path.is_symlink()
        if right:
            with open(path, "rb") as f:
                files[file_id] = (path.stat().st_size, f.read(1 << 24))
    return files


def touched_by(store):
    return Snapshot(store)


# ---- random damage ----

VALUES = [None, 0, 1, 2, 3, 5, 7, -1, 4096, 1 << 31, 1 << 48, 1 << 62, (1 << 63) - 1, -(1 << 63), 1.5, "text", "",
          b"", b"\0", b"/", b"..", b"\xff" * 16, b"x" * 300]
TABLES = ["object", "object", "object_bytes", "manifest", "manifest", "manifest_object", "manifest_object", "data_file",
          "data_file", "inode", "inode", "inode", "dirent", "dirent", "xattr", "meta", "sqlite_sequence"]


def mutate(store, rng):
    """One random piece of damage; says what it was."""
    return mutate_file(store, rng) if rng.random() < 0.25 else mutate_row(store, rng)


def mutate_row(store, rng):
    db = sqlite3.connect(store / "weightfs.db")
    db.execute("PRAGMA ignore_check_constraints = ON")
    try:
        table = rng.choice(TABLES)
        columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
        found = db.execute(f"SELECT * FROM {table}").fetchall()
        if not found:
            return "nothing"
        row = rng.choice(found)
        where = " AND ".join(f"{column} IS ?" for column in columns)
        if rng.random() < 0.15:
            change, values = f"DELETE FROM {table} WHERE {where}", row
        else:
            column = rng.choice(columns)
            old = row[columns.index(column)]
            near = [old + 1, old - 1, rng.choice(found)[columns.index(column)]] if isinstance(old, int) else []
            change, values = f"UPDATE {table} SET {column} = ? WHERE {where}", (rng.choice(VALUES + near * 4), *row)
        db.execute(change, values)
        db.commit()
        return change, [value if not isinstance(value, bytes) else value[:20] for value in values]
    except sqlite3.Error as error:
        return f"refused: {error}"
    finally:
        db.close()


def mutate_file(store, rng):
    packs = sorted(path for path in (store / "data").glob("??/*") if path.is_file() and not path.is_symlink())
    if not packs:
        return "nothing"
    path, other = rng.choice(packs), rng.choice(packs)
    what = rng.choice(["cut", "empty", "remove", "flip", "swap", "link", "directory", "rename", "stray", "grow"])
    size = path.stat().st_size
    if what == "cut":
        os.truncate(path, rng.randrange(size + 1))
    elif what == "grow":
        os.truncate(path, size + rng.randrange(1, 100_000))
    elif what == "empty":
        os.truncate(path, 0)
    elif what == "flip" and size:
        flip_byte(path, rng.randrange(min(size, 1 << 24)))
    elif what == "swap" and path != other:
        path.rename(store / "swap")
        other.rename(path)
        (store / "swap").rename(other)
    elif what == "rename":
        path.rename(path.parent / rng.choice(["x", "0" * 16, path.name + "0", "f" * 16]))
    elif what == "stray":
        (path.parent / rng.choice(["x", "7" * 14 + path.parent.name, "f" * 14 + path.parent.name])).write_bytes(b"stray")
    else:
        path.unlink()
        if what == "link":
            path.symlink_to("/nowhere")
        elif what == "directory":
            path.mkdir()
    return what, str(path), str(other)


def overwrite_random_pages(store, rng):
    """Some pages of the database, never the first, become random bytes, zeros or another page."""
    path = store / "weightfs.db"
    size, pages = ask(store, "SELECT (SELECT page_size FROM pragma_page_size), (SELECT page_count FROM pragma_page_count)")
    with open(path, "r+b") as f:
        for _ in range(rng.choice([1, 1, 2, 4])):
            f.seek(rng.randrange(1, pages) * size)
            other = f.read(size)
            f.seek(rng.randrange(1, pages) * size)
            f.write(rng.choice([rng.randbytes(size), bytes(size), other]))
