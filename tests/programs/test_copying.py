"""Programs that copy and move: into the mount, inside it and out of it, as between ordinary directories."""

import os
import shutil

import pytest

from programs.shell import (ALL_TIMES, BUT_OF_LINKS, NO_TIMES, OLD, STATES, Pair, age, assert_same,
                            entry_of, make_model, make_source, run, same_bytes, scripts, tree)
from support.files import MIB, random_bytes, segments, tree_hashes, write_file
from support.shards import shard


@pytest.fixture
def pair(mount, plain):
    return Pair(mount, plain)


# From $FROM to $TO, which is there and empty; and which times are kept.
COPIES = {
    "cp": [
        ('cp -r "$FROM/." "$TO"', NO_TIMES),
        ('cp -a "$FROM/." "$TO"', ALL_TIMES),
        ('cp -rp "$FROM/." "$TO"', ALL_TIMES),
        ('cp -a --reflink=auto "$FROM/." "$TO"', ALL_TIMES),
        ('cp -a --reflink=never "$FROM/." "$TO"', ALL_TIMES),
        ('cp -a --sparse=always "$FROM/." "$TO"', ALL_TIMES),
        ('cp -a --sparse=never "$FROM/." "$TO"', ALL_TIMES),
        ('cp -r --preserve=xattr "$FROM/." "$TO"', NO_TIMES),
        ('cp -r --attributes-only --preserve=all "$FROM/." "$TO"', ALL_TIMES),
    ],
    "rsync": [
        ('rsync -a "$FROM/" "$TO"', ALL_TIMES),
        ('rsync -aHX "$FROM/" "$TO"', ALL_TIMES),
        ('rsync -aHS "$FROM/" "$TO"', ALL_TIMES),
        ('rsync -a --inplace "$FROM/" "$TO"', ALL_TIMES),
        ('rsync -ac --fsync --no-whole-file "$FROM/" "$TO"', ALL_TIMES),
        ('rsync -a --delay-updates --preallocate "$FROM/" "$TO"', ALL_TIMES),
    ],
    "tar": [
        ('tar -C "$FROM" -cf - . | tar -C "$TO" -xpf -', ALL_TIMES),
        ('tar -C "$FROM" --sparse --xattrs --no-acls --format=posix -cf - . |'
         "tar -C \"$TO\" --xattrs --xattrs-include='user.*' -xpf -", ALL_TIMES),
        ('cd "$FROM"; tar -czf "$TO/../archive" .; cd "$TO"; tar -xpzf ../archive', ALL_TIMES),
        ('cd "$FROM"; tar --zstd -cf "$TO/../archive" .; cd "$TO"; tar --zstd -xpf ../archive', ALL_TIMES),
        ('bsdtar -C "$FROM" --format=pax -cf - . | bsdtar -C "$TO" -xpf -', ALL_TIMES),
    ],
    "archivers": [
        ('cd "$FROM"; find . -depth -print0 | cpio -0 -o --format=newc --quiet |'
         '(cd "$TO"; cpio -idm --quiet)', BUT_OF_LINKS),
        ('cd "$FROM"; find . -depth -print0 | cpio -0 -pdm --quiet "$TO"', BUT_OF_LINKS),
        ('cd "$FROM"; zip -qry "$TO/../a.zip" . -x others/fifo; cd "$TO"; unzip -q ../a.zip', NO_TIMES),
    ],
    "pax": [
        ('cd "$FROM"; pax -rw -pe . "$TO"', ALL_TIMES),
        ('cd "$FROM"; pax -w -x ustar . > "$TO/../archive"; cd "$TO"; pax -r -pe < ../archive', ALL_TIMES),
    ],
}


@pytest.mark.parametrize("program", COPIES)
def test_copied(mount, plain, program):
    """A tree copied in, inside and out: each is what the program makes of it in an ordinary directory."""
    if program == "pax" and not shutil.which("pax"):
        pytest.skip("there is no pax here: not every distribution has it")
    expected, second = {}, {}

    def copy(source, target, script, times):
        target.mkdir(parents=True)
        run(script, plain, FROM=source, TO=target)
        return tree(target, times=times)

    make_source(plain / "source")
    for number, (script, times) in enumerate(COPIES[program]):
        there = plain / str(number)
        expected[number] = copy(plain / "source", there / "copy" / "copy", script, times)
        second[number] = copy(there / "copy" / "copy", there / "second" / "copy", script, times)
        assert len(expected[number]) >= 18
        found = copy(plain / "source", mount.dir / str(number) / "in" / "copy", script, times)
        assert_same(found, expected[number], script)
    mount.wait_sealed()
    for number, (script, times) in enumerate(COPIES[program]):
        here = mount.dir / str(number)
        assert_same(tree(here / "in" / "copy", times=times), expected[number], script)
        again = copy(here / "in" / "copy", here / "again" / "copy", script, times)
        assert_same(again, second[number], script)
        out = copy(here / "again" / "copy", plain / str(number) / "out" / "copy", script, times)
        assert_same(out, second[number], script)
    mount.remount()
    for number, (script, times) in enumerate(COPIES[program]):
        here = mount.dir / str(number)
        assert_same(tree(here / "in" / "copy", times=times), expected[number], script)
        assert_same(tree(here / "again" / "copy", times=times), second[number], script)


INSIDE = {
    "cp": scripts(r"""
## links
cp -al source copy

## over
cp -a source copy
echo changed > copy/model/config.json
rm copy/others/empty
chmod u+w copy/others/read-only
cp -a source/. copy

## no clobber
mkdir -p copy/model
echo kept > copy/model/config.json
cp -rn source/. copy || true
cat copy/model/config.json

## update
cp -a source copy
touch copy/model/config.json
echo new > source/others/private
cp -rup source/. copy
cat copy/others/private

## backup
cp -a source copy
cp -r --backup=numbered source/model copy
ls copy/model

## force
cp -a source copy
chmod a-w copy/model/*
cp -rf source/model copy

## follow
cp -rL source/model copy
cp -L source/others/link copy/link

## parents
mkdir copy
cp --parents -a source/model/config.json source/others/fifo copy

## remove destination
cp -a source copy
cp -r --remove-destination source/model copy

## onto itself
cp source/model/config.json source/others/config-too || echo refused
"""),
    "mv": scripts(r"""
## rename
mv source/model moved
mv -T source/others source/again
mv moved/config.json moved/c.txt

## over
mv source/model/config.json source/others/read-only
mv -f source/others/empty source/others/private

## no clobber
mv -n source/others/empty source/others/private || true
ls source/others

## backup
mv -b source/others/empty source/others/private
ls source/others

## links of one inode
mv source/others/private source/others/private-too || echo refused

## into itself
mv source source/model || echo refused

## over a full directory
mkdir -p x/model/full && mv -T source/model x/model || echo refused
"""),
    "install and ln": scripts(r"""
## install
install -D -m 640 -p source/model/*1-of* copy/bin/shard.safetensors
cd copy
install -d new/deep
install -m 755 ../source/others/script.sh new
install -C -m 755 ../source/others/script.sh new
ls -l --time-style=+%Y bin
install -b -m 600 ../source/others/read-only new/script.sh

## ln
cd source
ln model/config.json c
ln -s model/config.json s
ln -sfn others s
ln -f others/empty c
ln -sr model/config.json 'others/empty directory/relative'
ln -P others/link d
ln -L others/link e
ln -b c e

## link and unlink
cd source
link model/config.json c
unlink model/config.json
cat c
"""),
    "rsync": scripts(r"""
## link-dest
rsync -a source/ one
rsync -a --link-dest=../one source/ two
stat -c %h two/model/*

## delete
rsync -a source/ copy
rm -r source/others/empty*
touch copy/new
rsync -ai --delete source/ copy | sort

## backup
rsync -a source/ copy
echo 12345 > source/model/config.json
rsync -a --backup --backup-dir=../kept source/ copy

## remove source
rsync -aH --remove-source-files source/ copy
find source -not -type d

## existing
mkdir -p copy/model
touch -d @1 copy/model/config.json
rsync -a --existing source/ copy
"""),
    "tar": scripts(r"""
## append
tar -cf all.tar source/model
tar -rf all.tar source/others
tar -tf all.tar | sort
tar --diff -f all.tar
touch source/model/config.json
tar -uf all.tar source/model
tar --delete -f all.tar source/others/empty
mkdir x
tar -C x -xpf all.tar --keep-newer-files
rm all.tar

## incremental
tar -cf 0.tar --listed-incremental=snar source
echo new > source/model/new
tar -cf 1.tar --listed-incremental=snar source/
tar -tf 1.tar | sort
rm *.tar snar

## remove files
tar -cf all.tar --remove-files source
mkdir x
tar -C x -xpf all.tar
rm all.tar

## over
tar -cf all.tar source
echo longer than it was > source/others/private
chmod u+w source/others/read-only
tar --overwrite -xpf all.tar
rm -r source/model
tar -xpf all.tar
rm all.tar

## keep
tar -cf all.tar source
echo kept > source/others/private
rm source/others/link
tar --skip-old-files -xf all.tar
rm all.tar
cat source/others/private
"""),
}


@pytest.mark.parametrize("program", INSIDE)
def test_copied_inside(pair, program):
    """A program that links, overwrites, backs up or moves does it as in an ordinary directory."""
    pair.run_each(INSIDE[program], lambda directory: make_source(directory / "source"), sealed=True)


def test_copied_as_symbolic_links(mount):
    """cp -rs makes links to each file; the model reads through them."""
    make_model(mount.dir / "model")
    run('cp -rs "$PWD/model" links', mount.dir)
    for settle in (lambda: None, mount.wait_sealed, mount.remount):
        settle()
        for path in (mount.dir / "model").iterdir():
            assert os.readlink(mount.dir / "links" / path.name) == str(path)
            assert same_bytes(mount.dir / "links" / path.name, path)


def test_reflink_always(mount, plain):
    """cp --reflink=always clones, or says that it cannot and harms nothing."""
    for directory in (plain, mount.dir):
        make_model(directory / "model")
    done = run("cp --reflink=always model/config.json copy", mount.dir, check=False)
    if done.returncode == 0:
        assert same_bytes(mount.dir / "copy", mount.dir / "model" / "config.json")
    else:
        assert b"failed to clone" in done.stderr
        assert not os.path.exists(mount.dir / "copy") or os.path.getsize(mount.dir / "copy") == 0
    write_file(plain / "over", b"x")
    done = run('cp --reflink=always "$FROM" model/config.json', mount.dir, check=False, FROM=plain / "over")
    assert done.returncode == 1 and b"failed to clone" in done.stderr
    run("cp --reflink=auto model/config.json copy", mount.dir)
    assert same_bytes(mount.dir / "copy", mount.dir / "model" / "config.json")


def test_a_copy_stores_no_more(mount):
    """A copy of a model inside the mount, by whatever program, takes no disk blocks once it is sealed."""
    (mount.dir / "model").mkdir()
    for number in range(3):
        content = shard({str(n): random_bytes(number * 10 + n, MIB + 24) for n in range(3)})
        write_file(mount.dir / "model" / f"{number}.safetensors", content)
    mount.wait_sealed()
    before = mount.disk()
    copies = ["cp -r model 0", "cp -a model 1", "rsync -a model/ 2", "cp -al model 3",
              "cp -a --reflink=never model 4", "mkdir 5; tar -C model -cf - . | tar -C 5 -xf -",
              "cp -r model x; mv x 6", "mkdir 7; for f in model/*; do cat $f > 7/${f#*/}; done",
              "mkdir 8; for f in model/*; do dd if=$f of=8/${f#*/} bs=300k status=none; done"]
    for script in copies:
        run(script, mount.dir)
    mount.wait_sealed()
    mount.wait_disk(before + MIB // 4)
    mount.remount()
    expected = tree_hashes(mount.dir / "model")
    for number, script in enumerate(copies):
        assert tree_hashes(mount.dir / str(number)) == expected, script


@pytest.mark.parametrize("sealed", [False, True])
def test_moved_across_devices(mount, plain, tmp_path, sealed):
    """mv into the mount and out of it keeps all: times, modes, hard links, xattrs; the source is gone."""
    make_source(plain / "source")
    expected = tree(plain / "source", times=ALL_TIMES)
    run('mv "$FROM" moved', mount.dir, FROM=plain / "source")
    assert os.listdir(plain) == []
    assert_same(tree(mount.dir / "moved", times=ALL_TIMES), expected)
    assert os.stat(mount.dir / "moved").st_mtime_ns == OLD
    if sealed:
        mount.wait_sealed()
        mount.remount()
    run('mv moved "$TO/back"', mount.dir, TO=plain)
    assert os.listdir(mount.dir) == []
    assert_same(tree(plain / "back", times=ALL_TIMES), expected)


def test_moved_over_existing(mount, plain):
    """mv of single files across devices replaces what is there, and refuses what it must."""
    make_model(plain / "model")
    make_model(mount.dir / "model")
    expected = tree(plain / "model")
    write_file(mount.dir / "model" / "config.json", b"to be replaced")
    run('mv -f "$FROM"/* model/', mount.dir, FROM=plain / "model")
    assert_same(tree(mount.dir / "model"), expected)
    (plain / "model" / "config.json").mkdir()
    done = run('mv "$FROM" model/', mount.dir, check=False, FROM=plain / "model" / "config.json")
    assert done.returncode == 1 and b"cannot overwrite" in done.stderr
    mount.remount()
    assert_same(tree(mount.dir / "model"), expected)


# ---- rsync ----

def test_rsync_again_transfers_nothing(mount, plain):
    """rsync -a of what is there already finds nothing to do, by times and by checksums: sealed, remounted."""
    make_source(plain / "source")
    copy = 'rsync -aHXi "$FROM/" copy'
    first = run(copy, mount.dir, FROM=plain / "source").stdout
    assert first.count(b"\n") >= 18
    for settle in (lambda: None, mount.wait_sealed, mount.remount):
        settle()
        assert run(copy, mount.dir, FROM=plain / "source").stdout == b""
        assert run(copy + " -c --delete", mount.dir, FROM=plain / "source").stdout == b""
        back = 'rsync -aHXin --delete copy/ "$FROM"'
        assert run(back, mount.dir, FROM=plain / "source").stdout == b""


BIG = 3 * MIB + 4321


def changed(data):
    """Some bytes overwritten, some put in, some taken out."""
    return data[:MIB] + b"overwritten" + data[MIB + 11:2 * MIB] + b"put in" + data[2 * MIB + 50_000:]


DELTAS = ["--no-whole-file", "--no-whole-file --inplace", "--no-whole-file --inplace --sparse",
          "--no-whole-file --sparse", "--no-whole-file --fsync", "--no-whole-file --delay-updates -c",
          "--no-whole-file --partial --partial-dir=.part", "--whole-file", "--whole-file --inplace"]


@pytest.mark.parametrize("direction", ["in", pytest.param("out", marks=pytest.mark.long)])
def test_rsync_delta(mount, plain, direction):
    """A file that changed is updated from its differences, onto a sealed file and from one."""
    data = random_bytes(1, BIG) + bytes(MIB) + b"end"
    source, target = (plain, mount.dir) if direction == "in" else (mount.dir, plain)
    write_file(source / "big.bin", data)
    for number in range(len(DELTAS)):
        shutil.copyfile(source / "big.bin", target / f"{number}.bin")
    mount.wait_sealed()
    write_file(source / "big.bin", changed(data))
    os.utime(source / "big.bin", ns=(OLD, OLD))
    if direction == "out":
        mount.wait_sealed()
    for number, options in enumerate(DELTAS):
        names = {"FROM": source / "big.bin", "TO": target / f"{number}.bin"}
        done = run(f'rsync -a --stats {options} "$FROM" "$TO"', plain, **names)
        literal = next(line for line in done.stdout.splitlines() if line.startswith(b"Literal data:"))
        whole = options.startswith("--whole")
        assert (int(literal.split()[2].replace(b",", b"")) > MIB) == whole, options
    expected = entry_of(source / "big.bin")
    for settle in (lambda: None, mount.wait_sealed, mount.remount):
        settle()
        for number, options in enumerate(DELTAS):
            assert entry_of(target / f"{number}.bin") == expected, options


RESUMED = ["--append-verify", "--append", "--partial --no-whole-file", "--partial --inplace"]


def test_rsync_interrupted(mount, plain):
    """A copy that was ended half way is continued, and is whole in the end."""
    write_file(plain / "big.bin", random_bytes(1, BIG))
    for number, options in enumerate(RESUMED):
        keep = "--inplace" if "append" in options else options
        script = (f'rsync -a {keep} --bwlimit=4000 "$FROM" {number}.bin & '
                  f'while [ ! "$(find . -name "*{number}.bin*" -size +20)" ]; do sleep 0.02; done;'
                  'kill $!; wait $!')
        assert run(script, mount.dir, check=False, FROM=plain / "big.bin").returncode == 20
        left = os.stat(mount.dir / f"{number}.bin").st_size
        assert 0 < left < BIG
    mount.wait_sealed()
    mount.remount()
    for number, options in enumerate(RESUMED):
        done = run(f'rsync -a --stats {options} "$FROM" {number}.bin', mount.dir, FROM=plain / "big.bin")
        assert b"Number of regular files transferred: 1" in done.stdout
    mount.wait_sealed()
    for number, options in enumerate(RESUMED):
        assert entry_of(mount.dir / f"{number}.bin") == entry_of(plain / "big.bin"), options


def test_rsync_of_a_model_in_place(mount, plain):
    """A shard that is updated with --inplace passes the gate as what it becomes."""
    for directory, seed in ((plain, 7), (mount.dir, 8)):
        content = shard({"a": random_bytes(seed, MIB), "b": random_bytes(1, MIB)})
        write_file(directory / "model.safetensors", content)
    os.utime(plain / "model.safetensors", ns=(OLD, OLD))
    mount.wait_sealed()
    run('rsync -a --inplace --no-whole-file "$FROM/" .', mount.dir, FROM=plain)
    status = mount.wait_sealed()
    assert (status["wrong"], status["incomplete"]) == (0, 0)
    assert_same(tree(mount.dir, times=ALL_TIMES), tree(plain, times=ALL_TIMES))


# ---- sparse files ----

def make_sparse(path):
    """4 MiB with data at both ends of a hole and in it; as SEEK_DATA tells it."""
    with open(path, "wb") as f:
        f.truncate(4 * MIB)
        for at in (0, MIB + 12345, 3 * MIB):
            f.seek(at)
            f.write(random_bytes(at, 100_000))


def data_size(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        return sum(end - begin for begin, end in segments(fd))
    finally:
        os.close(fd)


HOLES = scripts(r"""
## cp auto
cp --sparse=auto sparse copy

## cp always
cp --sparse=always sparse copy

## cp never
cp --sparse=never --reflink=never sparse copy

## rsync
rsync -S sparse copy

## rsync in place
rsync --inplace -S sparse copy

## tar
mkdir x
tar -Scf - sparse | tar -C x -xf -
mv x/sparse copy
du -k --apparent-size copy

## dd
dd if=sparse of=copy status=none conv=sparse bs=4096

## dd dense
dd if=sparse of=copy status=none bs=64k
""")


@pytest.mark.parametrize("sealed", STATES)
def test_holes(pair, sealed):
    """Holes are found in a source of the mount, and made in it, at least as many as in an ordinary directory.

    Sealing makes holes of zeros that were written.
    """
    pair.run_each(HOLES, lambda directory: make_sparse(directory / "sparse"), sealed=sealed)
    for name in HOLES:
        source, copy = pair.mount.dir / name / "sparse", pair.mount.dir / name / "copy"
        least, most = data_size(pair.plain / name / "sparse"), data_size(pair.plain / name / "copy")
        assert (most > 3 * MIB) == (name in ("cp never", "dd dense")), name
        assert data_size(source) == least
        assert least <= data_size(copy) <= most, name


# ---- dd and others that write files piece by piece ----

DD = scripts(r"""
## overwrite the middle
dd if=other of=file bs=1000 seek=77 skip=5 count=40 conv=notrunc status=none

## cut at the end of what is written
dd if=other of=file bs=1000 seek=77 count=4 status=none

## behind the end
dd if=other of=file bs=4096 seek=500 count=1 conv=notrunc status=none

## nothing but a length
dd if=/dev/null of=file bs=1 seek=1234567 status=none

## append
dd if=other of=file oflag=append conv=notrunc bs=777 status=none

## direct out
dd if=other of=file oflag=direct bs=4096 conv=notrunc status=none seek=3 count=9

## direct in
dd if=file of=copy iflag=direct bs=64k status=none

## direct both
dd if=file of=copy iflag=direct oflag=direct bs=128k count=2 status=none

## sync
dd if=other of=file oflag=sync bs=10000 status=none

## dsync
dd if=other of=file oflag=dsync bs=10000 conv=notrunc status=none

## fsync
dd if=other of=file bs=5000 conv=fsync,notrunc status=none

## fdatasync
dd if=other of=new bs=5000 conv=fdatasync,excl status=none

## from itself
dd if=file of=file bs=1000 skip=100 count=50 conv=notrunc status=none

## swab, unblocked
dd if=other of=file conv=swab,noerror,sync ibs=513 obs=8000 status=none

## bytes
dd if=other of=file iflag=skip_bytes,count_bytes oflag=seek_bytes \
    skip=3 count=100001 seek=5 conv=notrunc status=none

## nocache
dd if=file of=copy iflag=nocache oflag=nocache bs=1M status=none
dd if=copy iflag=nocache count=0 status=none

## split and cat
split -b 77777 -d file part-
split -n 5 other piece.
cat part-* > file2
cat piece.* > o2
cmp file file2
cmp other o2

## csplit
seq 1000 > lines
csplit -s lines 300 700
wc -l xx0?

## truncate
truncate -s 100 other
truncate -s +5000 other
truncate -s %4096 other
truncate -s '<200000' file
truncate -s 1M new
truncate -r other new
truncate -o -s 3 other

## fallocate
fallocate -l 1M new
fallocate -p -o 8192 -l 65536 file
fallocate -z -o 100 -l 50000 other
fallocate -n -o 500000 -l 9000 other
fallocate -d file

## shred
shred -n 2 -z file
shred -u -n 1 other
ls

## tee
seq 9999 | tee new other > third
seq 77 | tee -a new file | wc -l

## cat onto the end
cat other >> file
cat < other 1<> file
printf x 1<> file

## head and tail
head -c 100000 file > a
tail -c +5000 file > b
tail -c 300 file > c
tac -s x other > d
""")


@pytest.mark.parametrize("sealed", STATES)
def test_written_in_pieces(pair, sealed):
    """Parts of a file overwritten, cut, appended or read directly, dirty and sealed."""
    def prepare(directory):
        write_file(directory / "file", random_bytes(1, 300_001))
        write_file(directory / "other", random_bytes(2, 123_456))

    pair.run_each(DD, prepare, sealed=sealed)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_large_tree_in_and_out(mount, plain):
    """3,000 files in 60 directories, by cp, rsync and tar, then removed by rm: nothing stays in the store."""
    for number in range(3000):
        path = plain / "source" / f"{number % 60:02}" / f"{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, random_bytes(number, number % 50 * 977 or 400_000))
    age(plain / "source")
    empty = mount.disk()
    expected = tree(plain / "source", times=ALL_TIMES)
    for number, script in enumerate(('cp -a "$FROM" "$TO"', 'rsync -a "$FROM/" "$TO"', 'mkdir "$TO";'
                                     'tar -C "$FROM" --format=posix -cf - . | tar -C "$TO" -xpf -')):
        source = mount.dir / str(number - 1) if number else plain / "source"
        run(script, plain, FROM=source, TO=mount.dir / str(number))
    mount.wait_sealed()
    mount.remount()
    for number in range(3):
        assert_same(tree(mount.dir / str(number), times=ALL_TIMES), expected)
    run("rm -rf 0 1 2", mount.dir)
    mount.wait_sealed()
    assert os.listdir(mount.dir) == []
    mount.wait_disk(empty + MIB)
