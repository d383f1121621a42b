"""Processes that meet in files of a mount, watch them and remove them, as they do in a plain directory."""

import os
import subprocess

import pytest

from programs.shell import Pair, environment, make_model, run, scripts
from support.files import MIB, write_file
from support.mounts import wait_for


@pytest.fixture
def pair(mount, plain):
    return Pair(mount, plain)


MEETING = scripts(r"""
## fifo
mkfifo p
(echo through; echo it) > p &
cat < p
wait
mknod q p
(seq 5 > q &)
wc -l < q
ls -l p q | cut -c1

## fifo, both ways
mkfifo a b
(while read -r x; do echo got $x; done < a > b) &
exec 3> a 4< b
echo 1 >&3
read -ru 4 y
echo $y
exec 3>&-
wait
cat <&4

## removed while open
exec 3> file
rm file
echo kept >&3
cat /proc/self/fd/3
ls
stat -Lc '%s %h' /proc/self/fd/3
echo new > file
echo more >&3
cat /proc/self/fd/3 file
exec 4< file
mv -f file other
rm other
cat <&4

## removed directory
mkdir d
cd d
rmdir ../d
ls -A
echo x > y || echo refused
cd ..
ls

## replaced while read
seq 2000 > file
exec 3< file
head -c 4 <&3
seq 3 > new
mv new file
head -1 <&3 | wc -c
cat file
exec 5>> file
sed -i s/1/x/ file
echo lost >&5
cat file

## flock
exec 9> lock
flock 9
flock -n lock true || echo held
flock -s -w 0.1 lock true || echo held
flock -u 9
flock -n lock echo free
(flock -s 9; flock -s -n lock echo shared)
exec 9>&-
flock lock -c 'echo inside'

## flock and wait
(flock 9; touch held; sleep 0.2; echo first >> out) 9> lock &
until [ -e held ]; do sleep 0.02; done
flock lock -c 'echo second >> out'
wait
cat out
ln -s $$ pid
ln -s $$ pid 2> /dev/null || echo locked
rm pid
mkdir m
mkdir m 2> /dev/null || echo is

## appenders
for i in 1 2 3 4; do
    (for j in $(seq 100); do echo $i $j >> log; done) &
done
wait
wc -l < log
sort log | uniq -d | wc -l
awk 'NF != 2' log | wc -l
rm log

## socket
python3 -c '
import os, socket
a, b, d = (socket.socket(socket.AF_UNIX) for _ in range(3))
a.bind("s"); a.listen(); b.connect("s")
c, _ = a.accept()
b.sendall(b"hello"); print(c.recv(9))
os.rename("s", "t"); d.connect("t"); print(oct(os.stat("t").st_mode))'
python3 -c 'import socket; socket.socket(socket.AF_UNIX).connect("t")' 2>&1 | tail -1 || true
rm t

## datagrams
python3 -c '
import socket
a, b = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
a.bind("a"); b.bind("b"); a.sendto(b"x", "b"); print(b.recvfrom(9))'
ls
rm a b

## tail -f
echo one > log
timeout 9 tail -n +1 -s 0.02 -f log > seen &
sleep 0.2
echo two >> log
for i in $(seq 200); do
    if [ $(wc -l < seen) = 2 ]; then break; fi
    sleep 0.02
done
kill $!
cat seen

## tail -F
echo one > log
timeout 9 tail -n +1 -s 0.02 --max-unchanged-stats=1 -F log > seen 2> /dev/null &
until [ -s seen ]; do sleep 0.02; done
mv log log.1
echo two > log
for i in $(seq 200); do
    if [ $(wc -l < seen) = 2 ]; then break; fi
    sleep 0.02
done
kill $!
cat seen

## timeout
echo x > file
timeout 0.1 flock file sleep 9 || echo $?
flock -w 60 file echo free
mkfifo p
timeout 0.1 cat p || echo $?
timeout 0.1 sh -c 'echo x > p' || echo $?
""")


def test_processes_meet(pair):
    """Fifos, sockets, locks, appenders and followers; files removed or replaced while they are open."""
    pair.run_each(MEETING)


WATCHED = """
echo 1 > file
echo 2 >> file
cat file > /dev/null
mkdir dir
mv file dir/file
mv dir/file other
ln other link
touch other
chmod 600 other
truncate -s 0 other
cp other copy
rm copy
rmdir dir
mkfifo p
ln -s x symlink
setfattr -n user.x -v y other
touch end
"""


def events(directory):
    """What inotifywait tells while the script WATCHED runs."""
    watch = subprocess.Popen(["inotifywait", "-m", "--format", "%e %f", directory], env=environment(),
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while "Watches established" not in (line := watch.stderr.readline()):
            assert line, "inotifywait ended"
        run(WATCHED, directory)
        seen = []
        while "CREATE end\n" not in seen:
            seen.append(watch.stdout.readline())
            assert seen[-1], "inotifywait ended"
        return seen
    finally:
        watch.kill()
        watch.communicate()


def test_inotify(pair):
    """inotifywait sees each change that is made through the mount, in order, as it does elsewhere."""
    expected = events(pair.plain)
    for event in ("CREATE file", "MODIFY file", "CLOSE_WRITE,CLOSE file", "MOVED_TO other", "ATTRIB other",
                  "DELETE,ISDIR dir"):
        assert event + "\n" in expected
    assert events(pair.mount.dir) == expected


def test_inotify_wakes(mount):
    """inotifywait without -m ends by the event that it waits for: a shard that is moved into place."""
    make_model(mount.dir / "model")
    done = run("""
        inotifywait -e moved_to -t 50 --format %f model > seen 2> ready &
        until grep -q established ready; do sleep 0.02; done
        cp model/model-00001* model/.part
        mv model/.part model/best.safetensors
        wait $!
        cat seen
    """, mount.dir)
    assert done.stdout == b"best.safetensors\n"


def test_who_has_it_open(mount):
    """lsof and fuser name the process that has a file of the mount open, or works in it."""
    write_file(mount.dir / "file", b"x")
    with open(mount.dir / "file", "rb") as file:
        holder = subprocess.Popen(["sleep", "60"], stdin=file, cwd=mount.dir)
    name = str(holder.pid)

    def told(command):
        return run(command, mount.dir.parent, check=False).stdout.decode()

    try:
        wait_for(lambda: mount.status()["dirty"] == 0, 60, "the file sealed")
        assert told("lsof -t mnt/file").split() == [name]
        assert f" {mount.dir}/file\n" in told(f"lsof -p {name}")
        assert name in told("fuser mnt/file").split()
        assert name in told("fuser -m mnt").replace("c", "").split()
        assert mount.run("umount", mount.dir, check=False).returncode != 0
        os.unlink(mount.dir / "file")
        assert "file (deleted)" in told(f"readlink /proc/{name}/fd/0")
    finally:
        holder.kill()
        holder.wait()
    wait_for(lambda: told("fuser -m mnt") == "", 60, "that nothing is open any more")


# ---- trees ----

REMOVING = scripts(r"""
## deep
d=x
for i in $(seq 100); do d=$d/directory-$i; done
mkdir -p $d
echo x > $d/f
rm -rf x
ls -A

## wide
mkdir x
cd x
seq 400 | xargs touch
seq -f d%g 90 | xargs mkdir
ls | wc -l
rm -rf ../x
ls -A .. | wc -l

## while listing
mkdir x
seq -f x/%g 80 | xargs touch
ls -U x | while read -r f; do rm x/$f; done
rmdir x

## by find
mkdir x
seq -f x/%g 300 | xargs touch
find x -type f -name '*7*' -delete
ls x | wc -l
find x -depth -delete
ls -A

## rename all
mkdir x
seq -f x/%g 40 | xargs touch
for f in x/*; do mv $f $f.bak; done
ls x | grep -c bak
rm -r x

## chmod -R
mkdir -p a/b/c
touch a/f a/b/g
chmod -R u=rwX,go= a
stat -c '%a %n' a a/* a/b/*
chmod -R 777 a
find a -perm 777 | wc -l
chmod -R a-w a
find a -perm /222
chmod -R u+w a

## rm -i and errors
mkdir d
touch d/x
rmdir d || true
rm d || true
rm none || true
rm -f none
rm -d d || true
chmod 0 d/x
rm -f d/x
rmdir d
mkdir -p p/q/r
rmdir -p p/q/r
ls
""")


@pytest.mark.long
def test_removing(pair):
    """rm of deep and wide trees, also while they are listed; chmod -R; nothing stays."""
    pair.run_each(REMOVING)


def test_removed_gives_back(mount):
    """rm -rf of models gives back their disk blocks, with links and copies of them."""
    empty = mount.disk()
    for number in range(2):
        make_model(mount.dir / f"{number}", size=300_000 + number * 100)
    run("cp -a 0 copy; cp -al 1 links", mount.dir)
    mount.wait_sealed()
    assert mount.disk() > empty + 6 * MIB
    run("rm -rf *", mount.dir)
    assert os.listdir(mount.dir) == []
    mount.wait_sealed()
    mount.wait_disk(empty + MIB // 2)


@pytest.mark.long
def test_removing_large_trees(pair):
    """20,000 files in one directory and 300 levels, by rm -rf and by find; the listing between is right."""
    pair.run("""
        mkdir wide
        cd wide
        seq 20000 | xargs touch
        ls | wc -l
        ls -U | sort -n | md5sum
        find . -name '*3*' -delete
        ls | wc -l
    """)
    pair.mount.wait_sealed()
    pair.mount.remount()
    pair.run("""
        ls wide | md5sum
        rm -rf wide
        for i in $(seq 300); do
            mkdir d
            cd d
        done
        echo deep > file
    """)
    pair.run("find . -depth | wc -lc; rm -rf d; ls -A")


# ---- what root may ----

def let_others_pass(path):
    """Give other users the way through our directories above `path`."""
    for parent in path.parents:
        info = parent.stat()
        if info.st_uid == os.geteuid() and not info.st_mode & 0o001:
            parent.chmod(info.st_mode | 0o011)


AS_ROOT = {
    "set-id": """
        as_user() { setpriv --reuid="$OTHER" --regid="$OTHER" --clear-groups "$@"; }
        cp /bin/true f
        chmod 6755 f
        chown "$OTHER" f
        stat -c '%a %U' f
        chmod 6777 f
        as_user sh -c 'echo x >> f'
        stat -c %a f
        chown 0:0 f
        chmod 6755 f
        echo y >> f
        stat -c %a f
        chmod 6777 f
        as_user truncate -s 5 f
        stat -c %a f
        mkdir d
        chmod 2775 d
        chgrp "$OTHER" d
        stat -c %a d
        touch d/f
        mkdir d/s
        stat -c '%a %G' d/f d/s
        chmod 6755 f
        cp --preserve=mode f g
        chgrp "$OTHER" g
        stat -c %a g
        cp "$(command -v id)" who
        chown "$OTHER" who
        chmod 4755 who
        ./who -un
    """,
    "owners": """
        as_user() { setpriv --reuid="$OTHER" --regid="$OTHER" --clear-groups "$@"; }
        mkdir -p a/b
        touch a/f a/b/g
        ln -s f a/l
        chown -R "$OTHER:$OTHER" a
        stat -c '%U:%G %n' a a/* a/b/*
        chown -R --from="$OTHER" 0 a
        chown -hR 12345:54321 a
        chown ":$OTHER" a/f
        stat -c '%u:%g %n' a a/* a/b/*
        chown -R 0:0 a
        chown "$OTHER" a/f
        as_user chown 0 a/f || echo refused
        as_user sh -c 'chmod 600 a/f; echo mine > a/f; cat a/f'
        as_user sh -c 'echo x > a/b/g' || echo refused
        as_user rm -f a/f || echo refused
        cp -a a c
        install -o "$OTHER" -g "$OTHER" -m 640 a/f i
        mkdir t
        tar -cf - a | tar -C t -xpf -
        rsync -a a/ r
        stat -c '%U:%G %a %n' c/* i t/a/* r/*
    """,
    "devices": """
        mknod n c 1 3
        mknod b b 7 99
        mknod -m 600 z c 1 5
        mkdir copy t
        cp -a n b z copy
        echo gone > n
        head -c 5 z | xxd
        tar -cf - n z | tar -C t -xpf -
        head -c 3 t/z | wc -c
        rsync -aD n b r
        stat -c '%n %F %t %T %a' * */*
    """,
}


@pytest.mark.root_only
def test_owners_and_devices(unmounted, plain, other_user):
    """chown -R, device nodes and what copies keep of them; set-id bits work, and go when another writes."""
    let_others_pass(unmounted.dir)
    pair = Pair(unmounted.mount("allow_other", "suid", "dev"), plain)
    pair.each(lambda root: root.chmod(0o755))
    pair.run_each(AS_ROOT, OTHER=other_user.pw_name)
