"""Damage done to the bytes of a store behind its back, and what is known of the objects in it."""

import json
import mmap
import os
import random
import sqlite3
from dataclasses import dataclass

from support.files import errno_of
from support.mounts import data_path

PAGE = mmap.PAGESIZE


@dataclass(frozen=True)
class Object:
    id: int
    length: int
    data_file: int | None
    offset: int | None


def ask(store, query, *values):
    """The rows of a query of the store's database, which may be in use."""
    db = sqlite3.connect(f"file:{store}/weightfs.db?mode=ro", uri=True)
    try:
        return db.execute(query, values).fetchall()
    finally:
        db.close()


def objects(store):
    return [Object(*row) for row in ask(store, "SELECT id, length, data_file, offset FROM object ORDER BY id")]


def object_of(store, name, place):
    """Object number `place` of the sealed file `name`."""
    row, = ask(store, "SELECT o.id, o.length, o.data_file, o.offset FROM dirent d JOIN inode i ON i.ino = d.ino"
                      " JOIN manifest_object m ON m.manifest = i.manifest JOIN object o ON o.id = m.object"
                      " WHERE d.name = CAST(? AS BLOB) AND m.seq = ?", name, place)
    return Object(*row)


def flip(store, victim, seed=1):
    """Change one bit of an object, somewhere; in the database only of a store that nobody has open."""
    at, bit = random.Random(seed).randrange(victim.length), 1 << random.Random(seed).randrange(8)
    if victim.data_file is None:
        db = sqlite3.connect(store / "weightfs.db")
        content = bytearray(db.execute("SELECT bytes FROM object_bytes WHERE object = ?", (victim.id,)).fetchone()[0])
        content[at] ^= bit
        db.execute("UPDATE object_bytes SET bytes = ? WHERE object = ?", (bytes(content), victim.id))
        db.commit()
        db.close()
    else:
        flip_at(data_path(store, victim.data_file), victim.offset + at, bit)


def flip_at(path, offset, bit=1):
    with open(path, "r+b") as f:
        f.seek(offset)
        byte = f.read(1)[0]
        f.seek(offset)
        f.write(bytes([byte ^ bit]))


def verify(mount, what=None, *options):
    """(exit status, answer) of `weightfs verify`."""
    done = mount.run("verify", what or mount.store, *options, "--json", check=False, timeout=300)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def named(answer):
    """{path: names of what is damaged in it} of such an answer."""
    found = {}
    for damaged in answer["damaged"]:
        for place in damaged["files"]:
            found.setdefault(place["path"], set()).add(place["tensor"] or place["part"])
    return found


def unreadable_pages(path, size):
    """Numbers of the pages of a file that read(2) gives EIO for."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return {n for n in range((size + PAGE - 1) // PAGE) if errno_of(os.pread, fd, PAGE, n * PAGE)}
    finally:
        os.close(fd)


def pages_of(begin, end):
    return set(range(begin // PAGE, (end + PAGE - 1) // PAGE))
