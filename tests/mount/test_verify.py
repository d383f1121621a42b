"""`weightfs verify`: what is stored against its digests, on stores in use and at rest."""

import ctypes
import json
import mmap
import os
import random
import signal
import subprocess
import threading
import time

import pytest

from support.damage import ask, flip, flip_at, named, object_of, objects, verify
from support.files import libc, random_bytes, read_file, write_file
from support.mounts import data_files, data_path
from support.shards import shard

SEEDS = [int(seed) for seed in os.environ.get("WEIGHTFS_SEEDS", "1").split()]
TENSOR = 300_000
MODEL, TUNED = "/base/model.safetensors", "/tuned/model.safetensors"


def tensors(changed=""):
    return {name: random_bytes(ord(name) + 1000 * (name in changed), TENSOR) for name in "abcd"}


def fill(mount):
    """Files of each kind; what each has as its tensors, by path."""
    files = {MODEL: shard(tensors()), TUNED: shard(tensors("c")), "/base/config.json": b'{"model_type": "none"}\n',
             "/opaque.bin": random_bytes(50, 400_000), "/small.safetensors": shard({"s": random_bytes(51, 2000)})}
    for path, content in files.items():
        path = mount.dir / path[1:]
        path.parent.mkdir(exist_ok=True)
        write_file(path, content)
        if path == mount.dir / MODEL[1:]:
            mount.wait_sealed()  # so that the second of the models is the composed one
    mount.wait_sealed()
    os.link(mount.dir / "opaque.bin", mount.dir / "base" / "linked.bin")
    return files


@pytest.fixture
def filled(mount):
    mount.files = fill(mount)
    return mount


def holders(store, victim):
    """{path} of the files that have an object, hard links included."""
    rows = ask(store, "SELECT DISTINCT d.parent, d.name FROM manifest_object m JOIN inode i ON i.manifest = m.manifest"
                      " JOIN dirent d ON d.ino = i.ino WHERE m.object = ?", victim.id)
    found = set()
    for parent, name in rows:
        path = "/" + name.decode()
        while parent != 1:
            parent, name = ask(store, "SELECT parent, name FROM dirent WHERE ino = ?", parent)[0]
            path = "/" + name.decode() + path
        found.add(path)
    return found


@pytest.mark.parametrize("state", ["mounted", "unmounted"])
def test_sound_store(filled, state):
    """Everything is read once, and found right."""
    if state == "unmounted":
        filled.umount()
    status = filled.status()
    code, answer = verify(filled)
    assert (code, answer["clean"], answer["finished"], answer["damaged"]) == (0, True, True, [])
    assert (answer["objects"], answer["bytes"]) == (status["objects"], status["stored_bytes"])
    assert "no damage" in filled.run("verify", filled.store).stdout


@pytest.mark.parametrize("seed", SEEDS)
def test_flipped_bits_are_found_and_named(filled, seed):
    """One bit anywhere: the object is named, with every file that has it, and nothing else is."""
    filled.umount()
    every = objects(filled.store)
    for turn, victim in enumerate(random.Random(seed).sample(every, 3)):
        flip(filled.store, victim, seed + turn)
        code, answer = verify(filled, None, "--only-look")
        assert code == 1
        assert [bad["object"] for bad in answer["damaged"]] == [victim.id]
        assert answer["damaged"][0]["reason"] == "bytes-changed"
        assert set(named(answer)) == holders(filled.store, victim)
        flip(filled.store, victim, seed + turn)
    assert verify(filled)[0] == 0


def test_names_tensor_file_and_model(filled):
    """A tensor that two models share is named in both, with number and place."""
    victim = next(o for o in objects(filled.store) if o.data_file and o.length == TENSOR)
    flip(filled.store, victim)
    code, answer = verify(filled, filled.dir)
    bad, = answer["damaged"]
    header = len(filled.files[MODEL]) - 4 * TENSOR
    assert code == 1
    assert sorted((f["path"], f["model"], f["part"], f["tensor"], f["number"], f["at"], f["length"])
                  for f in bad["files"]) == [
        (MODEL, "/base", "tensor", "a", 0, header, TENSOR), (TUNED, "/tuned", "tensor", "a", 0, header, TENSOR)]
    text = filled.run("verify", filled.dir, check=False).stdout
    assert f"{MODEL}: tensor a (number 0), {TENSOR} bytes at {header}: they are not what was stored" in text
    write_file(filled.dir / "again.safetensors", shard(tensors()))
    filled.wait_sealed()


@pytest.mark.leaves_damage
@pytest.mark.parametrize("damage, reason", [("removed", "bytes-missing"), ("cut", "bytes-missing"),
                                            ("link", "bytes-missing"), ("zeroed", "bytes-changed")])
def test_other_damage(filled, damage, reason):
    filled.umount()
    victim = max((o for o in objects(filled.store) if o.data_file), key=lambda o: (o.data_file, o.offset))
    path = data_path(filled.store, victim.data_file)
    if damage == "removed":
        path.unlink()
    elif damage == "cut":
        os.truncate(path, victim.offset + victim.length - 1)
    elif damage == "link":
        path.rename(filled.store / "elsewhere")
        path.symlink_to(filled.store / "elsewhere")
    else:
        with open(path, "r+b") as f:
            f.seek(victim.offset)
            f.write(bytes(victim.length))
    code, answer = verify(filled)
    assert (code, {bad["reason"] for bad in answer["damaged"]}) == (1, {reason})
    assert victim.id in [bad["object"] for bad in answer["damaged"]]


def test_only_what_a_path_needs(filled):
    """A path is verified without the rest: damage elsewhere is not met, damage of what it shares is."""
    flip(filled.store, object_of(filled.store, "opaque.bin", 0))
    code, answer = verify(filled, filled.dir / "tuned")
    assert (code, answer["objects"], answer["bytes"]) == (0, 5, len(filled.files[TUNED]))
    assert verify(filled, f"{filled.store}:{MODEL}")[0] == 0
    code, answer = verify(filled, filled.dir / "opaque.bin")
    assert (code, set(named(answer))) == (1, {"/opaque.bin", "/base/linked.bin"})
    assert verify(filled, filled.dir / "base")[0] == 1
    write_file(filled.dir / "again.bin", filled.files["/opaque.bin"])
    filled.wait_sealed()
    assert verify(filled)[0] == 0


def composed_and_whole(mount):
    """A file that shares tensors and has a whole copy: its path, and (manifest, data file of the copy)."""
    path = mount.dir / TUNED[1:]
    if mount.json("ls", path)["layout"] == "composed":
        mount.run("repack", path)
    row, = ask(mount.store, "SELECT id, whole FROM manifest WHERE whole IS NOT NULL")
    return path, *row


@pytest.mark.parametrize("state", ["mounted", "unmounted"])
def test_whole_copy_with_wrong_bytes_is_dropped(filled, state):
    """The file is read from its tensors again; the copy was not needed."""
    path, manifest, whole = composed_and_whole(filled)
    if state == "unmounted":
        filled.umount()
    flip_at(data_path(filled.store, whole), 2 * TENSOR)
    code, answer = verify(filled)
    assert (code, answer["repaired"], answer["damaged"][0]["whole_copy"]) == (0, 1, True)
    assert ask(filled.store, "SELECT whole FROM manifest WHERE id = ?", manifest) == [(None,)]
    if state == "unmounted":
        filled.mount()
    assert read_file(path) == filled.files[TUNED]


@pytest.mark.parametrize("state", ["mounted", "unmounted"])
def test_whole_copy_repairs_the_tensor(filled, state):
    """What the only place of a tensor has lost, a whole copy still has: it lives there from then on."""
    path, _, whole = composed_and_whole(filled)
    victim = object_of_path(filled, MODEL, 2)
    assert victim.data_file != whole
    if state == "unmounted":
        filled.umount()
    flip(filled.store, victim)
    code, answer = verify(filled)
    assert (code, answer["repaired"]) == (0, 1)
    if state == "unmounted":
        filled.mount()
    for name in (MODEL, TUNED):
        assert read_file(filled.dir / name[1:]) == filled.files[name]
    assert filled.status()["damaged"] == 0
    assert verify(filled)[0] == 0


def object_of_path(mount, path, place):
    manifest = ask(mount.store, "SELECT manifest FROM inode WHERE ino = ?", os.stat(mount.dir / path[1:]).st_ino)[0][0]
    row, = ask(mount.store, "SELECT o.id FROM manifest_object m JOIN object o ON o.id = m.object"
                            " WHERE m.manifest = ? AND m.seq = ?", manifest, place)
    return next(o for o in objects(mount.store) if o.id == row[0])


def test_no_false_alarm_on_a_busy_mount(mount):
    """Seals, sharing, removal, rewriting and collection go on while everything is read again and again."""
    done, errors = threading.Event(), []

    def work(worker):
        source, turn = random.Random(worker), 0
        try:
            while not done.is_set():
                changed = source.choice("abcd") + source.choice("abcd")
                path = mount.dir / f"{worker}-{turn % 4}.safetensors"
                write_file(path, shard({name: random_bytes(ord(name) + 1000 * worker * turn * (name in changed), 120_000)
                                        for name in "abcd"}))
                if turn % 3 == 2:
                    (mount.dir / f"{worker}-{source.randrange(4)}.safetensors").unlink(missing_ok=True)
                if turn % 5 == 4 and path.exists():
                    with open(path, "r+b") as f:
                        f.seek(90_000)
                        f.write(b"\0" * 7)
                turn += 1
                time.sleep(0.05)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in (1, 2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(8):
            code, answer = verify(mount)
            assert (code, answer["damaged"]) == (0, [])
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert errors == []


def test_dirty_files_are_counted(filled):
    with open(filled.dir / "written", "wb") as f:
        f.write(b"now")
        f.flush()
        code, answer = verify(filled)
        assert (code, answer["dirty"]) == (0, 1)


def test_rate(filled):
    """--rate is a limit: less than a part of the store cannot be read in a part of a second."""
    size = filled.status()["stored_bytes"]
    begin = time.monotonic()
    assert verify(filled, None, "--rate", str(size))[0] == 0
    assert time.monotonic() - begin > 0.5


def test_interrupted(filled):
    """Stopped by a signal: what was found until then is said, and that it was not all (status 2)."""
    process = subprocess.Popen([filled.weightfs, "verify", "--rate", "1000", "--json", str(filled.store)],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    answer = json.loads(output)
    assert (process.returncode, answer["finished"], answer["clean"]) == (2, False, False), errors
    assert answer["objects"] < filled.status()["objects"]


def resident(path):
    """Pages of a file that are in the page cache."""
    size = os.path.getsize(path)
    with open(path, "r+b") as f, mmap.mmap(f.fileno(), size) as area:
        pages = (ctypes.c_ubyte * ((size + mmap.PAGESIZE - 1) // mmap.PAGESIZE))()
        address = ctypes.addressof(ctypes.c_char.from_buffer(area))
        assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), pages) == 0
        count = sum(page & 1 for page in pages)
        del address
        return count


def test_leaves_the_page_cache_alone(filled):
    """What was not cached is not afterwards; what was is still."""
    filled.umount()
    hot, *cold = sorted(data_files(filled.store))
    for path in cold:
        with open(path, "rb") as f:
            os.fdatasync(f.fileno())
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert [resident(path) for path in cold] == [0] * len(cold)
    kept = False
    for _ in range(5):  # others on the machine may empty the cache, too
        read_file(hot)
        assert verify(filled)[0] == 0
        kept = kept or resident(hot) > 0
    assert kept
    assert [resident(path) for path in cold] == [0] * len(cold)


@pytest.mark.parametrize("arguments", [[], ["--rate", "0"], ["--rate", "x", "s"], ["--threads", "0", "s"],
                                       ["--only-look", "--from", "d", "s"], ["a", "b"], ["/nonexistent"]])
def test_status_2_where_it_cannot(unmounted, arguments):
    done = unmounted.run("verify", *arguments, check=False)
    assert done.returncode == 2
    assert done.stderr


@pytest.mark.parametrize("threads", ["1", "7"])
def test_threads_find_the_same(filled, threads):
    filled.umount()
    victims = [o for o in objects(filled.store) if o.id % 2]
    for victim in victims:
        flip(filled.store, victim)
    _, answer = verify(filled, None, "--threads", threads, "--only-look")
    assert sorted(bad["object"] for bad in answer["damaged"]) == [o.id for o in victims]
    for victim in victims:
        flip(filled.store, victim)
