"""Programs that look at files, edit and build them: what they print and leave is as in a plain directory."""

import os
import sys
import zipfile

import pytest

from programs.shell import STATES, Pair, make_source, run, scripts, tree
from support.files import MIB, random_bytes, read_file, write_file


@pytest.fixture
def pair(mount, plain):
    return Pair(mount, plain)


def prepare_source(directory):
    make_source(directory / "source")


# ---- looking ----

LOOKING = scripts(r"""
## find by type and mode
find source -type f | sort
find source -type l | sort
find source -type p
find source -perm -100 | sort
find source -perm /022 | sort
find source -xtype l

## find by size and links
find source -not -type d -printf '%p %s %n %y %m %l\n' | sort
find source -type f -size +4k | sort
find source -type f -links +1 | sort
find source -empty | sort
find source -type f -size 0

## find by time
touch -d 2020-09-13T12:26:40.5Z mark
find source -newer mark | sort
find source -not -newer mark | sort
find source -newermt 2020-09-13 -printf '%p %T+\n' | sort
find source -mtime +1 | wc -l

## find by inode
number=$(stat -c %i source/others/private)
find source -inum $number | sort
find source -samefile source/others/private | sort
find . -xdev | sort

## find -delete
find source -name '*.safetensors' -delete
find source -type d -empty -delete
find source | sort

## find -exec
find source -type f -exec chmod u+w {} +
find source -name '[p-s]*' -type f -exec sh -c 'echo x >> "$1"' - {} \;
find source -type f -print0 | sort -z | xargs -0 wc -c

## ls
ls -la --time-style=full-iso source/others source/model | grep -v -e '^d' -e '^total'
ls -A1U source/others | sort
ls -R1S source/model source/others/*
ls -ltr --time-style=+%N source/model/*
ls -1t source/others
ls -1X source/others
ls -Q1v source/others

## du
du -ab source/*/* | grep -v directory | sort -k2
du -s --apparent-size -B1 source/others/sparse
du -cbl source/others/[p-s]* | tail -1
du -cb source/others/[p-s]* | tail -1
du --inodes source | sort

## stat
find source -not -type d -exec stat -c '%n %s %h %B' {} + | sort
stat -c '%n %a %F %u %g %Y %y %t %T' source/*/* source
stat -L -c %s source/others/link

## digests
sha256sum source/model/* > sums
sha256sum -c --quiet sums
md5sum source/model/*
cksum source/others/e*
b2sum source/model/config.json | sha1sum
xxd source/model/config.json
od -c source/others/script.sh

## cmp and diff
cp -a source other
diff -r --no-dereference -x fifo source other
cmp source/model/*1-of* other/model/*1-of*
echo x > other/new
echo y >> other/others/private
diff -r -x fifo --no-dereference source other || true
cmp source/others/empty other/new || true
diff -u --label a --label b source/others/private other/others/private || true

## grep
grep -r --devices=skip model_type source | sort
grep -rl --devices=skip -e '' source | sort
grep -c a source/model/*
grep -abo pt source/model/*1-of*
grep -rL --devices=skip x source | sort

## file tests
for file in source/others/*; do
    for question in -b -c -d -f -h -p -r -s -S -u -w -x -O -G -N; do
        if [ $question "$file" ]; then echo "$question $file"; fi
    done
done
[ source/others -nt source/model/config.json ]
[ source/others/private -ef source/others/private-too ]
[ ! source/others/private -ef source/others/empty ]

## globs
shopt -s globstar dotglob nullglob
printf '%q\n' source/**
printf '%q\n' source/*/*.{json,none}

## realpath
cd source/others/directory-link
pwd -P
pwd -L
realpath config.json
cd ..
pwd
readlink -f link
readlink dangling
realpath -m dangling
namei -m link
cd -P directory-link/..
pwd

## wc, head, tail
wc -c source/model/*
head -c 8 source/model/*1-of* | xxd
tail -c 100 source/model/*2-of* | md5sum
tail -n +2 -q source/others/script.sh source/model/config.json
""")


def test_looking(pair):
    """find, ls, du, stat, digests, diff, grep and globs say of sealed files what they say elsewhere."""
    pair.run_each(LOOKING, prepare_source, sealed=True)


def test_file_system_of_a_path(pair):
    """df, stat -f, mountpoint and findmnt know the mount; its size is that of the disk below."""
    pair.run("stat -f -c '%b %S %s %l %c' .; df --output=size,itotal . | tail -1")
    here = pair.mount.dir
    script = "mountpoint -q .; df --output=fstype . | tail -1; findmnt -no FSTYPE --target .; df . | tail -1"
    lines = run(script, here).stdout.decode().splitlines()
    assert lines[:2] == ["fuse.weightfs", "fuse.weightfs"]
    assert lines[2].endswith(f" {here}")
    (here / "sub").mkdir()
    assert run("mountpoint sub", here, check=False).returncode != 0
    assert run("stat -c %m sub", here).stdout.decode().strip() == str(here)
    run("sync -f sub; sync .; sync -d sub", here)
    assert run('find "$TOP" -xdev -path "$TOP/mnt/*"', pair.plain, TOP=here.parent).stdout == b""


def blocks(script, directory):
    """The first number of what a script says, in bytes."""
    return int(run(script, directory).stdout.split()[0])


def test_blocks(mount):
    """du and the totals of ls count the blocks of a file as if it were alone, without its holes."""
    write_file(mount.dir / "dense", random_bytes(1, MIB + 1))
    run("cp dense copy; ln dense link; truncate -s 8M sparse; cat dense >> sparse", mount.dir)
    run("mkdir d; cp dense d", mount.dir)
    alone = MIB + 4096
    for settle in (lambda: None, mount.wait_sealed, mount.remount):
        settle()
        for name in ("dense", "copy", "link", "d/dense"):
            assert blocks(f"du -B1 {name}", mount.dir) == alone, name
        assert alone <= blocks("du -B1 sparse", mount.dir) <= alone + 4096
        assert blocks("du -B1 --apparent-size sparse", mount.dir) == 9 * MIB + 1
        assert blocks("du -cB1 dense link copy | tail -1", mount.dir) == 2 * alone
        assert blocks("du -lcB1 dense link copy | tail -1", mount.dir) == 3 * alone
        assert blocks("ls -s --block-size=1 d | sed 's/total //'", mount.dir) == alone


def test_inode_attributes_are_refused(mount):
    """lsattr and chattr say that there are none; the file is as it was."""
    write_file(mount.dir / "file", b"content")
    for script in ("lsattr file", "chattr +i file", "chattr +a file", "chattr -p 5 file"):
        done = run(script, mount.dir, check=False)
        assert b"not supported" in done.stderr or b"Inappropriate ioctl" in done.stderr, (script, done)
    run("echo more >> file && rm file", mount.dir)


# ---- editing ----

LINES = "".join(f"line {number} of the file\n" for number in range(400)).encode()


def prepare_lines(directory):
    write_file(directory / "file", LINES)
    os.chmod(directory / "file", 0o640)
    os.symlink("file", directory / "link")
    os.link(directory / "file", directory / "second")
    os.setxattr(directory / "file", "user.note", b"kept?")


EDITING = scripts(r"""
## sed -i
sed -i s/line/row/ file
sed -i.bak '5d;$a\
end' file
ls
sed -n 3,6p file.bak second

## sed -i on a link
sed -i s/line/row/ link
ls -l link | cut -c1
head -1 link file

## sed --follow-symlinks
sed -i --follow-symlinks s/line/row/ link
readlink link
head -1 link second

## perl -i
perl -pi -e 's/line/row/' file
perl -i.orig -ne 'print if $. % 2' file
ls
wc -l *

## ed
printf '%s\n' 2,9d '$a' 'at the end' . 'g/1/s/of/OF/' w q | ed -s file
cat file

## ex
ex -s -c '%s/line/row/' -c 'x' file

## awk
awk '{print $2 > "out" NR % 3}' file
awk '/9/ {print | "sort -r > nines"}' file
wc -l out* nines

## sort -o
sort -r -k2,2n file -o file
sort -u -o file file
sort -S 1M -T . file | md5sum
sort -c file

## vim, no backup
vim -es -u NONE -c 'set nobackup nowritebackup' -c '2,9d' -c wq file
ls -A

## vim, backup by rename
vim -es -u NONE -c 'set backup backupskip= backupcopy=no' -c 's/^/new /' -c wq file
ls -A
wc file~

## vim, backup by copy
vim -es -u NONE -c 'set backup backupskip= backupcopy=yes' -c 's/^/new /' -c wq file
ls -A
head -1 file~

## vim, several
cp file other
vim -es -u NONE -c 'set backup backupskip= backupcopy=auto' -c 'argdo %s/of/OF/ge | w' -c 'qa!' link other
ls -A
head -1 file other

## vim, swap and undo
vim -es -u NONE -c 'set swapfile undofile undodir=.' -c 'normal ohello' -c w -c q file
ls -A
vim -es -u NONE -c 'set undodir=. undofile' -c 'undo' -c wq file
head -3 file
rm .file.un~

## patch
sed s/line/row/ file > new
diff -u file new > p || true
patch -s -b file p
cmp file new
patch -sR file p
patch -s --dry-run second p
patch -o out -s file p
patch -s -N second p
rm p
ls -A

## tee
tee file < second | wc -l
sed s/line/row/ second | tee -a file > other
wc -l *

## redirections
exec 3<>file
read -u 3 a b
echo "$a $b"
echo over >&3
exec 3>&-
head -2 file
: > second
wc file

## here and pipes
cat > new <<< text
{ echo 1; echo 2 >&2; } > both 2>&1
cat both
mapfile -t x < both
echo ${#x[@]}
diff <(sort file) <(sort -r file) > /dev/null || echo differ
set -C
echo x > new || true

## spool
while read -r a n rest; do echo $n >> all; done < file
paste all file | tail -2
split -l 100 file p.
cat p.?? | cmp - file
comm -12 <(sort file) <(sort second) | wc -l
join <(seq 9) <(nl file) | tail -1

## gzip
cp file a
cp file b
gzip -9n a
gunzip -k a.gz
cmp a file
gzip -t a.gz
zcat a.gz | wc
rm -f second
touch -d @1 file
gzip -knf file
gzip -l file.gz
stat -c '%Y %a' file.gz

## zstd, xz, bzip2
zstd -q -19 file
zstd -qt file.zst
zstd -qdo x file.zst
zstd -q --rm x
xz -k file
xz -dc file.xz | cmp - file
bzip2 -kf file
bzcat file.bz2 | wc
zstd -qd --sparse -f file.zst
ls

## zip
zip -q a.zip file second
touch -d 2040-01-01 file
zip -qu a.zip file
zip -qd a.zip second
unzip -tq a.zip
mkdir x
unzip -q a.zip -d x
zip -qm b.zip second
zip -qj b.zip x/file
unzip -l b.zip | tail -1 | wc -w
unzip -o -q b.zip
rm *.zip
ls

## touch
touch -d 2001-02-03T04:05:06.123456789Z file
stat -c %y file
touch -r file new
touch -am -t 202001010000 link
touch -h -d @5 link
stat -c %Y link file new
touch -c none
ls
date -r file +%s

## modes
umask 027
echo > a
mkdir b
umask 0
echo > c
mkfifo d
umask 777
echo > e
umask 22
chmod -R g+w,o-r b file
chmod u=rwX,g=u-w,o= file c
chmod --reference=file a
chmod +t b
chmod 0 d
stat -c '%n %a' *
""")


@pytest.mark.parametrize("sealed", STATES)
def test_editing(pair, sealed):
    """Editors, filters and compressors change files, in place and by replacing them, dirty and sealed."""
    pair.run_each(EDITING, prepare_lines, sealed=sealed)


def test_vim_recovers(pair):
    """What an editor that was killed had in its swap file is there after a remount."""
    pair.each(prepare_lines)
    seen = pair.run(r"""
        {
            vim -es -u NONE -c 'set swapfile directory=.' -c 'normal onot written' -c preserve \
                -c 'call system("kill -9 " . getpid())' file || true
        } 2> /dev/null
        ls -A
        head -2 file
    """, TMPDIR=pair.plain.parent)  # for what vim cannot remove
    assert ".file.swp" in seen
    pair.mount.wait_sealed()
    pair.mount.remount()
    pair.run("vim -es -u NONE -r file -c 'w! recovered' -c 'qa!' > /dev/null 2>&1 || true; rm .file.swp")
    assert b"not written\n" in read_file(pair.mount.dir / "recovered")
    pair.assert_same()


# ---- building ----

MAKEFILE = """\
program: main.o part.o
	$(CC) -o $@ $^ && echo linked
%.o: %.c part.h
	$(CC) -c -o $@ $< && echo compiled $<
libpart.so: part.c part.h
	$(CC) -shared -fPIC -o $@ part.c
clean:
	rm -f *.o program libpart.so
"""
MAIN = '#include <stdio.h>\n#include "part.h"\nint main(void) { printf("%d\\n", part()); return 0; }\n'
BUILDING = scripts(r"""
## make
make -s
./program
make -s
touch -d @1 main.c
make -s
touch part.c
make -s
sed -i s/42/43/ part.c
make -s
./program
make -s -t
touch part.h
make -s -j2 | sort
make -sq
ls

## libraries
make -s libpart.so main.o
cc -o main main.o -L. -lpart -Wl,-rpath,'$ORIGIN'
./main
ldd main | grep -c 'libpart.so => .*/libpart.so'
LD_PRELOAD=$PWD/libpart.so ./main
ar rcs libx.a main.o
ar t libx.a
ranlib libx.a
strip main
./main
python3 -c 'import ctypes; print(ctypes.CDLL("./libpart.so").part())'

## busy
make -s
cp $(command -v sleep) program
./program 5 &
sleep 0.1
echo x > program || echo busy
cp -f main.c program
head -1 program
kill $!
rm program
echo x > program

## scripts
printf '#!/bin/sh\necho "run $1"\n' > s
./s || echo $?
chmod +x s
./s a
ln -s s t
./t b
cp s u
./u c
printf '#!./s\n' > v
chmod +x v
./v
(chmod -x s; exec ./s) || echo $?
set a
. ./u

## perl
printf 'package P; sub f { return 7 } 1;' > P.pm
perl -I. -MP -e 'print P::f(), "\n"'
""")


def prepare_build(directory):
    write_file(directory / "Makefile", MAKEFILE.encode())
    write_file(directory / "main.c", MAIN.encode())
    write_file(directory / "part.h", b"int part(void);\n")
    write_file(directory / "part.c", b'#include "part.h"\nint part(void) { return 42; }\n')


@pytest.mark.long
def test_building(pair):
    """make builds what is older, by times in nanoseconds; programs and libraries run from the mount."""
    for name in BUILDING:
        pair.each(lambda root: (root / name).mkdir())
        pair.each(lambda root: prepare_build(root / name))
    pair.mount.wait_sealed()
    for name, script in BUILDING.items():
        pair.run(script, below=name)
    pair.mount.wait_sealed()
    pair.mount.remount()
    assert pair.run("make -sq; ./program", below="make") == "43\n"
    assert pair.run("./main", below="libraries") == "42\n"
    assert pair.run("./u x", below="scripts") == "run x\n"
    assert tree(pair.mount.dir).keys() == tree(pair.plain).keys()


WHEEL = {
    "small/__init__.py": "VALUE = 42\n\n\ndef main():\n    print(VALUE)\n",
    "small/data.txt": "data\n",
    "small-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: small\nVersion: 1.0\n",
    "small-1.0.dist-info/WHEEL":
        "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "small-1.0.dist-info/entry_points.txt": "[console_scripts]\nsmall = small:main\n",
}


def make_wheel(directory):
    """A package with one module and a script, as pip wants it."""
    names = [*WHEEL, "small-1.0.dist-info/RECORD"]
    record = "".join(f"{name},,\n" for name in names)
    with zipfile.ZipFile(directory / "small-1.0-py3-none-any.whl", "w") as wheel:
        for name in names:
            wheel.writestr(name, WHEEL.get(name, record))


PIP_OPTIONS = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_CACHE_DIR": "1", "PIP_NO_INDEX": "1",
               "PIP_FIND_LINKS": ".", "PIP_ROOT_USER_ACTION": "ignore", "PYTHON": sys.executable}


@pytest.mark.long
def test_python(pair):
    """pip install --target, byte code, modules in a zip file, a virtual environment: made and run there."""
    pair.each(make_wheel)
    pair.run("""
        "$PYTHON" -m pip -q install --target target small
        find target | sort
        unset PYTHONDONTWRITEBYTECODE
        export PYTHONPATH=target
        target/bin/small
        rm -rf target/small/__pycache__
        "$PYTHON" -c 'import small; small.main()'
        ls target/small/__pycache__
        rm -r target/small/__pycache__
        "$PYTHON" -m compileall -q target
        "$PYTHON" -m zipfile -c code.zip target/small
        PYTHONPATH=code.zip "$PYTHON" -c 'import small; print(small.__file__)'
        "$PYTHON" -m venv --without-pip env
        cp -r target/small env/lib/python3*/site-packages
        env/bin/python -c 'import sys, small; print(sys.prefix, small.__file__)'
    """, **PIP_OPTIONS)
    pair.mount.wait_sealed()
    pair.mount.remount()
    answers = pair.run("PYTHONPATH=target target/bin/small; env/bin/python -c 'import small; small.main()'")
    assert answers == "42\n42\n"
    assert tree(pair.mount.dir).keys() == tree(pair.plain).keys()


@pytest.mark.long
def test_virtual_environment(pair):
    """python -m venv with pip in it, a package installed by that pip, and removed again."""
    pair.each(make_wheel)
    pair.run("""
        "$PYTHON" -m venv env
        env/bin/pip -q install small
        env/bin/small
        find env -name '*.py' | sort
    """, **PIP_OPTIONS)
    pair.mount.wait_sealed()
    pair.mount.remount()
    pair.run("""
        env/bin/small
        env/bin/pip list --format=freeze
        env/bin/pip -q uninstall -y small
        find env -name '*small*'
    """, **PIP_OPTIONS)
    assert tree(pair.mount.dir).keys() == tree(pair.plain).keys()
