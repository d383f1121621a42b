"""Databases whose files lie on the mount: SQLite, LMDB, DuckDB, HDF5.

They lock, map, write in place and keep logs beside their files. Each does the
same on the disk itself; where several processes are at it, or one is killed,
what was acknowledged must be there.
"""

import os
import signal
import sqlite3

import pytest

np = pytest.importorskip("numpy")

import h5py
import lmdb

from support.files import at_once, random_bytes, sha256, tree_hashes
from support.mounts import SETTLES
from support.nursery import Nursery
from support.training import in_each_state

SECONDS = 60


@pytest.fixture(scope="module")
def nursery():
    made = Nursery("import duckdb, h5py, lmdb, sqlite3")
    yield made
    made.close()


@pytest.fixture
def start(mount, nursery):
    """Starts processes: start(function, *arguments), as Nursery does. They end before the mount does."""
    made = []

    def begin(function, *arguments):
        made.append(nursery.start(function, *arguments))
        return made[-1]

    yield begin
    for process in made:
        process.end()


def let_go(process):
    """Tell a process that waits to go on to its end."""
    process.tell()
    assert process.value() is None


def killed_after(process, lines):
    """Read so many lines of what a process prints, kill it; all the lines it printed."""
    said = [process.stdout.readline() for _ in range(lines)]
    process.kill()
    said += process.stdout.readlines()
    assert process.wait() == -signal.SIGKILL
    return said


# ---- SQLite ----

JOURNALS = ["delete", "wal", pytest.param("truncate", marks=pytest.mark.long),
            pytest.param("persist", marks=pytest.mark.long)]


def connect(path, journal=None, **options):
    connection = sqlite3.connect(path, isolation_level=None, **options)
    if journal:
        assert connection.execute(f"PRAGMA journal_mode={journal}").fetchone() == (journal,)
    return connection


def fill(root, journal, mapped):
    """A table, large and small rows, rollbacks, a savepoint, VACUUM, a backup, one commit to two files."""
    connection = connect(root / "a.db", journal)
    connection.execute(f"PRAGMA mmap_size={mapped}")
    connection.execute("CREATE TABLE rows (key INTEGER PRIMARY KEY, name TEXT UNIQUE, data BLOB)")
    connection.execute("BEGIN")
    for key in range(300):
        connection.execute("INSERT INTO rows VALUES (?, ?, ?)",
                           (key, f"row {key}", random_bytes(key, key * 17)))
    connection.execute("COMMIT")
    connection.execute("BEGIN")
    connection.execute("DELETE FROM rows")
    connection.execute("ROLLBACK")
    connection.execute("SAVEPOINT here")
    connection.execute("UPDATE rows SET name = 'x' || key")
    connection.execute("ROLLBACK TO here")
    connection.execute("RELEASE here")
    connection.execute("DELETE FROM rows WHERE key % 3 = 0")
    connection.execute("VACUUM")
    connection.execute(f"ATTACH '{root / 'b.db'}' AS b")
    connection.execute("CREATE TABLE b.copied AS SELECT * FROM rows WHERE 0")
    connection.execute("BEGIN")
    connection.execute("INSERT INTO b.copied SELECT * FROM rows")
    connection.execute("DELETE FROM rows WHERE key % 5 = 0")
    connection.execute("COMMIT")
    connection.execute("DETACH b")
    connection.execute(f"VACUUM INTO '{root / 'into.db'}'")
    with connect(root / "backup.db") as target:
        connection.backup(target, pages=7)
    target.close()
    connection.close()


def dump(path):
    """Everything that a database says."""
    connection = connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    lines = list(connection.iterdump())
    connection.close()
    return lines


@pytest.mark.parametrize("mapped", [0, pytest.param(1 << 28, marks=pytest.mark.long)], ids=["read", "mapped"])
@pytest.mark.parametrize("journal", JOURNALS)
def test_sqlite(mount, plain, journal, mapped):
    """A database in each journal mode has the files and the rows that it has on the disk."""
    for root in (plain, mount.dir):
        fill(root, journal, mapped)
    assert sorted(os.listdir(mount.dir)) == sorted(os.listdir(plain))
    for number, how in enumerate(SETTLES):
        mount.settle(how)
        for root in (plain, mount.dir):
            connection = connect(root / "a.db", journal)
            connection.execute("UPDATE rows SET data = zeroblob(3000 + key) WHERE key % 7 = ?", (number,))
            connection.close()
        for name in ("a.db", "b.db", "into.db", "backup.db"):
            assert dump(mount.dir / name) == dump(plain / name)
    mount.remount()
    connection = connect(f"file:{mount.dir / 'a.db'}?mode=ro", uri=True)
    rows = connection.execute("SELECT * FROM rows").fetchall()
    connection.close()
    assert len(rows) == 160
    assert dump(mount.dir / "a.db") == dump(plain / "a.db")


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_sqlite_writers_at_once(mount, journal):
    """Four processes count in one row: each waits for the other's lock, no count is lost."""
    path = mount.dir / "a.db"
    connection = connect(path, journal)
    connection.execute("CREATE TABLE counter (value INTEGER)")
    connection.execute("INSERT INTO counter VALUES (0)")
    connection.close()

    def count(number):
        connection = connect(path, timeout=SECONDS)
        for _ in range(25):
            connection.execute("BEGIN IMMEDIATE")
            value, = connection.execute("SELECT value FROM counter").fetchone()
            connection.execute("UPDATE counter SET value = ?", (value + 1,))
            connection.execute("COMMIT")
        connection.close()
        return number

    assert at_once(4, count) == [0, 1, 2, 3]
    mount.remount()
    assert dump(path)[-2] == "INSERT INTO \"counter\" VALUES(100);"


def hold(path, begin):
    """Begin a transaction, insert, and wait to be told."""
    import sqlite3
    import sys
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(begin)
    connection.execute("INSERT INTO rows VALUES (2)")
    print("holds")
    sys.stdin.readline()
    connection.execute("COMMIT")
    connection.close()


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_sqlite_locked(mount, start, journal):
    """While one process writes another may not, reads what was there, and then what was committed."""
    path = mount.dir / "a.db"
    connection = connect(path, journal, timeout=0)
    connection.execute("CREATE TABLE rows (value INTEGER)")
    connection.execute("INSERT INTO rows VALUES (1)")
    holder = start(hold, path, "BEGIN IMMEDIATE")
    assert holder.stdout.readline() == "holds\n"
    with pytest.raises(sqlite3.OperationalError, match="database is locked"):
        connection.execute("BEGIN IMMEDIATE")
    assert connection.execute("SELECT value FROM rows").fetchall() == [(1,)]
    let_go(holder)
    assert connection.execute("SELECT value FROM rows").fetchall() == [(1,), (2,)]
    if journal == "delete":
        holder = start(hold, path, "BEGIN EXCLUSIVE")
        assert holder.stdout.readline() == "holds\n"
        with pytest.raises(sqlite3.OperationalError, match="database is locked"):
            connection.execute("SELECT value FROM rows")
        let_go(holder)
    connection.close()


def write_for_ever(path, journal):
    """Commit row after row, each said when it is there; then leave a large transaction unfinished."""
    import sqlite3
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(f"PRAGMA journal_mode={journal}")
    connection.execute("PRAGMA cache_size=5")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE IF NOT EXISTS rows (value INTEGER, data BLOB)")
    for value in range(40):
        connection.execute("INSERT INTO rows VALUES (?, randomblob(3000))", (value,))
        print(value)
    connection.execute("BEGIN")
    connection.execute("UPDATE rows SET value = value + 1000, data = randomblob(3000)")
    print("unfinished")
    value = 0
    while True:
        connection.execute("INSERT INTO rows VALUES (?, randomblob(3000))", (value,))


def kept(path):
    """The values of the rows of a database that is whole."""
    connection = connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    rows = connection.execute("SELECT value FROM rows ORDER BY value").fetchall()
    connection.close()
    return [value for value, in rows]


@pytest.mark.parametrize("journal", JOURNALS)
def test_sqlite_writer_killed(mount, start, journal):
    """SIGKILL in a transaction: a hot journal or a log stays, the next one rolls back to what was said."""
    path = mount.dir / "a.db"
    writer = start(write_for_ever, path, journal)
    assert killed_after(writer, 41)[-1] == "unfinished\n"
    beside = mount.dir / ("a.db-wal" if journal == "wal" else "a.db-journal")
    assert beside.stat().st_size > 4096
    mount.remount()
    assert kept(path) == list(range(40))
    mount.remount()
    assert kept(path) == list(range(40))
    assert not beside.exists() or journal == "persist"


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_sqlite_driver_killed(mount, start, journal):
    """The driver killed under a writer: whole at the next mount, with every row that was committed."""
    path = mount.dir / "a.db"
    writer = start(write_for_ever, path, journal)
    said = [writer.stdout.readline() for _ in range(20)]
    mount.kill()
    said += writer.stdout.readlines()
    assert writer.wait() != 0
    mount.mount()
    sure = [int(line) for line in said if line[0].isdigit()]
    values = kept(path)
    assert len(sure) >= 20 and values in (sure, sure + [len(sure)])
    mount.remount()
    assert kept(path) == values


def read_for_ever(path):
    """Say the count of rows whenever it is asked, on one connection."""
    import sqlite3
    import sys
    connection = sqlite3.connect(path, isolation_level=None)
    print("ready")
    for _ in sys.stdin:
        print(connection.execute("SELECT count(*), sum(value) FROM rows").fetchone())


def test_sqlite_log_shared(mount, start):
    """In WAL mode an open reader sees each commit of a writer through the mapped index; snapshots stay."""
    path = mount.dir / "a.db"
    writer = connect(path, "wal")
    writer.execute("CREATE TABLE rows (value INTEGER)")
    reader = start(read_for_ever, path)
    assert reader.stdout.readline() == "ready\n"
    snapshot = connect(path)
    snapshot.execute("BEGIN")
    assert snapshot.execute("SELECT count(*) FROM rows").fetchone() == (0,)
    for value in range(1, 60):
        writer.execute("INSERT INTO rows VALUES (?)", (value,))
        reader.tell()
        assert reader.stdout.readline() == f"({value}, {value * (value + 1) // 2})\n"
    assert (mount.dir / "a.db-shm").stat().st_size == 32768
    assert snapshot.execute("SELECT count(*) FROM rows").fetchone() == (0,)
    snapshot.execute("COMMIT")
    snapshot.close()
    assert writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    assert (mount.dir / "a.db-wal").stat().st_size == 0
    writer.close()
    reader.end()
    mount.remount()
    assert dump(path)[-2] == "INSERT INTO \"rows\" VALUES(59);"


# ---- LMDB ----

MAP = 64 << 20


def environment(path, **options):
    return lmdb.open(str(path), map_size=MAP, max_dbs=4, **options)


def fill_lmdb(path, writemap):
    """Two databases, large and small values, an aborted transaction, removals, values put in place."""
    with environment(path, writemap=writemap) as env:
        for name in (b"a", b"b"):
            database = env.open_db(name)
            with env.begin(write=True, db=database) as change:
                for key in range(400):
                    assert change.put(b"%04d" % key, random_bytes(key, key * 23))
        with env.begin(write=True, db=database) as change:
            change.drop(database, delete=False)
            change.abort()
        with env.begin(write=True, db=database) as change:
            for key in range(0, 400, 3):
                assert change.delete(b"%04d" % key)
            assert change.put(b"0001", b"changed", overwrite=True)
            cursor = change.cursor()
            assert cursor.set_key(b"0002") and cursor.put(b"0002", bytes(46))
        env.sync(True)


def content_lmdb(path, **options):
    with environment(path, **options) as env:
        databases = [env.open_db(name) for name in (b"a", b"b")]
        with env.begin() as look:
            return [list(look.cursor(database)) for database in databases]


@pytest.mark.parametrize("writemap", [False, True], ids=["written", "mapped"])
def test_lmdb(mount, plain, writemap):
    """A database written by write(2) or through its mapping, copied and compacted: what is on the disk."""
    for root in (plain, mount.dir):
        fill_lmdb(root / "lmdb", writemap)
    for how in SETTLES:
        mount.settle(how)
        for root in (plain, mount.dir):
            with environment(root / "lmdb", writemap=writemap) as env, \
                    env.begin(write=True, db=env.open_db(b"a")) as change:
                assert change.put(how.encode(), how.encode() * 5000)
    for root in (plain, mount.dir):
        with environment(root / "lmdb") as env:
            (root / "copy").mkdir()
            env.copy(str(root / "copy"), compact=True)
    expected = content_lmdb(plain / "lmdb")
    assert len(expected[0]) == 403 and expected[1][0] == (b"0001", b"changed")
    mount.remount()
    for name in ("lmdb", "copy"):
        assert content_lmdb(mount.dir / name) == expected
        assert content_lmdb(mount.dir / name, readonly=True, lock=False) == expected
    assert sha256(mount.dir / "copy/data.mdb") == sha256(plain / "copy/data.mdb")


@pytest.mark.parametrize("writemap", [False, True], ids=["written", "mapped"])
def test_lmdb_processes_at_once(mount, writemap):
    """Processes count through the lock that lies in a mapped file, readers see whole transactions."""
    path = mount.dir / "lmdb"

    def count(number):
        with environment(path, writemap=writemap) as env:
            for _ in range(25):
                with env.begin(write=True) as change:
                    value = int(change.get(b"value", b"0")) + 1
                    change.put(b"value", b"%d" % value)
                    change.put(b"twice", b"%d" % (2 * value))
                with env.begin() as look:
                    assert int(look.get(b"twice")) == 2 * int(look.get(b"value"))
        return number

    assert at_once(4, count) == [0, 1, 2, 3]
    mount.remount()
    with environment(path) as env, env.begin() as look:
        assert look.get(b"value") == b"100"


def write_lmdb_for_ever(path, writemap):
    """Commit value after value, each said when it is there; then hold the lock of a transaction."""
    import time
    import lmdb
    env = lmdb.open(path, map_size=64 << 20, writemap=writemap)
    for value in range(40):
        with env.begin(write=True) as change:
            change.put(b"%04d" % value, bytes([value]) * 5000)
        print(value)
    with env.begin(write=True) as change:
        change.put(b"9999", bytes(100_000))
        print("unfinished")
        time.sleep(600)


@pytest.mark.parametrize("writemap", [False, True], ids=["written", "mapped"])
def test_lmdb_writer_killed(mount, start, writemap):
    """SIGKILL with the lock held: the next writer gets it, and every value that was committed."""
    path = mount.dir / "lmdb"
    writer = start(write_lmdb_for_ever, path, writemap)
    assert killed_after(writer, 41)[-1] == "unfinished\n"
    expected = {b"%04d" % value: bytes([value]) * 5000 for value in range(40)}
    for how in SETTLES:
        mount.settle(how)
        with environment(path, writemap=writemap) as env, env.begin(write=True) as change:
            assert dict(change.cursor()) == expected
            change.put(how.encode(), how.encode())
        expected[how.encode()] = how.encode()


# ---- DuckDB ----

def fill_duckdb(root):
    """A table, a checkpoint and changes after it; exported to Parquet files and as a directory."""
    import pathlib
    import duckdb
    root = pathlib.Path(root)
    connection = duckdb.connect(root / "a.duckdb", config={"threads": 2})
    connection.execute("CREATE TABLE rows AS SELECT i, i * i AS square, 'row ' || i AS name"
                       " FROM range(50000) t(i)")
    connection.execute("CHECKPOINT")
    connection.execute("UPDATE rows SET name = 'changed' WHERE i % 1000 = 0")
    connection.execute("BEGIN")
    connection.execute("DELETE FROM rows")
    connection.execute("ROLLBACK")
    connection.execute(f"COPY (SELECT * FROM rows ORDER BY i) TO '{root}/rows.parquet' (FORMAT parquet)")
    connection.execute(f"COPY (SELECT *, i % 3 AS part FROM rows) TO '{root}/parts'"
                       " (FORMAT parquet, PARTITION_BY (part))")
    connection.execute(f"EXPORT DATABASE '{root}/exported' (FORMAT parquet)")
    connection.execute("DELETE FROM rows WHERE i % 2 = 0")
    connection.close()


def read_duckdb(root):
    """What each file says, read only."""
    import duckdb
    digest = "count(*), sum(i), sum(square)::VARCHAR, bit_xor(hash(name))::VARCHAR"
    with duckdb.connect(f"{root}/a.duckdb", read_only=True, config={"threads": 2}) as connection:
        found = [connection.execute(f"SELECT {digest} FROM {table}").fetchone()
                 for table in ("rows", f"'{root}/rows.parquet'", f"read_parquet('{root}/parts/*/*.parquet')")]
    with duckdb.connect(":memory:", config={"threads": 2}) as connection:
        connection.execute(f"IMPORT DATABASE '{root}/exported'")
        return found + [connection.execute(f"SELECT {digest} FROM rows").fetchone()]


def test_duckdb(mount, plain, start):
    """Written, checkpointed, exported to Parquet and imported; read by two processes at once."""
    for filler in [start(fill_duckdb, root) for root in (plain, mount.dir)]:
        filler.value()
    expected = start(read_duckdb, plain).value()
    assert [row[0] for row in expected] == [25000, 50000, 50000, 50000]
    assert sha256(mount.dir / "rows.parquet") == sha256(plain / "rows.parquet")

    def check():
        readers = [start(read_duckdb, mount.dir) for _ in range(2)]
        assert [reader.value() for reader in readers] == [expected, expected]

    in_each_state(mount, check)


def hold_duckdb(path):
    """Commit row after row into the log, each said when it is there, with the database open."""
    import time
    import duckdb
    connection = duckdb.connect(path, config={"threads": 1})
    connection.execute("CREATE TABLE rows (value INTEGER)")
    connection.execute("CHECKPOINT")
    for value in range(20):
        connection.execute("INSERT INTO rows VALUES (?)", [value])
        print(value)
    connection.execute("BEGIN")
    connection.execute("INSERT INTO rows SELECT * FROM range(100000)")
    print("unfinished")
    time.sleep(600)


def open_duckdb(path, read_only):
    import duckdb
    try:
        with duckdb.connect(path, read_only=read_only) as connection:
            return sorted(value for value, in connection.execute("SELECT value FROM rows").fetchall())
    except duckdb.IOException as error:
        return str(error)


def test_duckdb_locked_and_killed(mount, start):
    """While one process has it open others are refused; killed, its log gives what was committed."""
    path = mount.dir / "a.duckdb"
    holder = start(hold_duckdb, path)
    said = [holder.stdout.readline() for _ in range(21)]
    assert said[-1] == "unfinished\n"
    for opener in [start(open_duckdb, path, read_only) for read_only in (False, True)]:
        assert "Could not set lock on file" in opener.value()
    holder.kill()
    assert holder.wait() == -signal.SIGKILL
    assert (mount.dir / "a.duckdb.wal").stat().st_size > 0
    mount.remount()
    for read_only, how in zip((True, False, True), SETTLES):
        mount.settle(how)
        assert start(open_duckdb, path, read_only).value() == list(range(20))


# ---- HDF5 ----

def fill_hdf5(path):
    """Chunked, compressed, resized and plain datasets, attributes, and numbers in a file of their own."""
    g = np.random.default_rng(0)
    with h5py.File(path, "w", userblock_size=512) as f:
        f["plain"] = g.standard_normal((200, 100))
        f.create_dataset("group/packed", data=g.integers(0, 9, (300, 300)), chunks=(64, 64),
                         compression="gzip", shuffle=True, fletcher32=True)
        grown = f.create_dataset("grown", (0, 50), maxshape=(None, 50), dtype="f4", chunks=(16, 50))
        for rows in range(1, 30):
            grown.resize(rows * 7, axis=0)
            grown[-7:] = rows
        outside = f.create_dataset("outside", (5000,), dtype="f8", external=[("raw.bin", 16, 40000)])
        outside[:] = np.arange(5000)
        f.attrs["name"] = "tiny"
        f["soft"] = h5py.SoftLink("/group/packed")
    with open(path, "r+b") as f:
        f.write(b"user block")


def content_hdf5(path, **options):
    with h5py.File(path, "r", **options) as f:
        names = []
        f.visit(names.append)
        datasets = {name: f[name] for name in names if isinstance(f[name], h5py.Dataset)}
        return {name: dataset[...].tobytes() for name, dataset in datasets.items()}, dict(f.attrs)


def test_hdf5(mount, plain, monkeypatch):
    """Written, and edited when sealed, with HDF5's locks: the bytes of the disk's file, by each driver."""
    for root in (plain, mount.dir):
        monkeypatch.chdir(root)  # the file of raw numbers is named as seen from here
        fill_hdf5(root / "a.h5")
    for number, how in enumerate(SETTLES):
        monkeypatch.chdir("/")
        mount.settle(how)
        for root in (plain, mount.dir):
            monkeypatch.chdir(root)
            with h5py.File(root / "a.h5", "r+", locking=True) as f:
                f["plain"][number] = number
                f["grown"].resize(10 + number, axis=0)
                f["outside"][number::9] = -number
                del f["group/packed"]
                f["group/packed"] = np.full((70, 70), number)
        monkeypatch.chdir("/")
        assert tree_hashes(mount.dir) == tree_hashes(plain)
    mount.remount()
    for options in ({}, {"driver": "core", "backing_store": False}, {"driver": "stdio"}):
        monkeypatch.chdir(mount.dir)
        found = content_hdf5("a.h5", **options)
        monkeypatch.chdir(plain)
        assert found == content_hdf5("a.h5", **options)
    monkeypatch.chdir("/")


def hold_hdf5(path, mode):
    """Open it, say so, and wait to be told."""
    import sys
    import h5py
    with h5py.File(path, mode, locking=True) as f:
        if mode != "r":
            f.require_dataset("data", (10,), "i4")
        print("holds")
        sys.stdin.readline()


def test_hdf5_locked(mount, start):
    """A file that one process writes is refused to others; several read it, and then none may write."""
    path = mount.dir / "a.h5"
    for held, wanted, refused in (("w", "r", True), ("r+", "r+", True), ("r", "r+", True), ("r", "r", False)):
        holder = start(hold_hdf5, path, held)
        assert holder.stdout.readline() == "holds\n"
        if refused:
            with pytest.raises(BlockingIOError, match="unable to lock file"):
                h5py.File(path, wanted, locking=True)
        else:
            with h5py.File(path, wanted, locking=True) as f:
                assert f["data"].shape == (10,)
        let_go(holder)
    with h5py.File(path, "r+", locking=True) as f:
        f["data"][:] = 3


def append_hdf5(path, count):
    """Append rows in single-writer-multiple-reader mode, each batch said and flushed."""
    import sys
    import h5py
    with h5py.File(path, "w", libver="latest") as f:
        data = f.create_dataset("data", (0,), maxshape=(None,), dtype="i8", chunks=(100,))
        f.swmr_mode = True
        for batch in range(count):
            data.resize((batch + 1) * 1000, axis=0)
            data[-1000:] = range(batch * 1000, (batch + 1) * 1000)
            data.flush()
            print(batch)
            sys.stdin.readline()


def test_hdf5_read_while_written(mount, start):
    """SWMR: a reader that has the file open follows what a writer appends."""
    path, count = mount.dir / "a.h5", 8
    writer = start(append_hdf5, path, count)
    reader = None
    for batch in range(count):
        assert writer.stdout.readline() == f"{batch}\n"
        reader = reader or h5py.File(path, "r", libver="latest", swmr=True)
        reader["data"].id.refresh()
        assert reader["data"][:].tolist() == list(range((batch + 1) * 1000))
        writer.tell()
    reader.close()
    assert writer.value() is None

    def check():
        with h5py.File(path, "r") as f:
            assert f["data"][:].tolist() == list(range(count * 1000))

    in_each_state(mount, check)
