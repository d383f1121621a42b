"""git and git-lfs on a mount: the same commits, files and answers as in an ordinary directory."""

import os

import pytest

from programs.shell import Pair, assert_same, run, scripts, tree
from support.files import MIB, random_bytes, read_file, sha256, write_file
from support.shards import shard

SETTINGS = """\
[user]
	name = A. U. Thor
	email = author@example.org
[init]
	defaultBranch = main
[core]
	fsmonitor = false
[protocol "file"]
	allow = always
[gc]
	auto = 0
[filter "lfs"]
	clean = git-lfs clean -- %f
	smudge = git-lfs smudge -- %f
	process = git-lfs filter-process
	required = true
"""
# A commit whose times are fixed has one name wherever it is made.
DATES = {"GIT_AUTHOR_DATE": "1600000000 +0000", "GIT_COMMITTER_DATE": "1600000001 +0000",
         "GIT_CONFIG_NOSYSTEM": "1"}
ALL = """
git rev-parse HEAD
git status --porcelain
git ls-files -s
git fsck --full --strict
"""
SOME, FEW = 200, 40  # files of a repository


@pytest.fixture
def pair(mount, plain):
    write_file(plain.parent / ".gitconfig", SETTINGS.encode())
    return Pair(mount, plain)


def git(pair, script, **options):
    return pair.run(script, HOME=pair.plain.parent, **DATES, **options)


def git_in(pair, directory, script, **variables):
    """The output of a script in one directory alone."""
    return run(script, directory, HOME=pair.plain.parent, **DATES, **variables).stdout


def make_sources(root, count):
    """A source tree: text, a script, a link, and something binary."""
    for number in range(count):
        directory = root / f"part{number % 5}" / f"sub{number % 4}"
        directory.mkdir(parents=True, exist_ok=True)
        lines = [f"line {line} of file {number}, {line * number}\n" for line in range(number % 60 + 3)]
        write_file(directory / f"file{number}.txt", "".join(lines).encode())
    write_file(root / "run.sh", b"#!/bin/sh\nexit 0\n")
    os.chmod(root / "run.sh", 0o755)
    os.symlink("part1/sub1", root / "link")
    write_file(root / "binary", random_bytes(5, 100_000))
    write_file(root / ".gitignore", b"*.o\n/build/\n")


def make_repository(pair, count=FEW):
    pair.each(lambda root: make_sources(root / "work", count))
    git(pair, """
        cd work
        git init -q
        git add .
        git commit -qm first
        touch x.o
        git status --short
    """)


def assert_stat_is_kept(pair, where="work"):
    """git sees each file unchanged by its inode number, size, mtime and ctime alone."""
    assert git_in(pair, pair.mount.dir / where, "git diff-files; git diff-index HEAD") == b""


def without_git(found):
    return {name: entry for name, entry in found.items()
            if not any(part.endswith(b".git") for part in name.split(b"/"))}


def assert_same_work_trees(pair):
    assert_same(without_git(tree(pair.mount.dir)), without_git(tree(pair.plain)))


def test_repository(pair):
    """init, add, commit, gc, fsck, log: object by object as in a plain directory; clean after a remount."""
    make_repository(pair, SOME)
    assert git(pair, ALL, below="work").count("\n") > SOME
    for settle in (lambda: None, pair.mount.wait_sealed, pair.mount.remount):
        settle()
        assert_stat_is_kept(pair)
    git(pair, """
        echo more >> part1/sub1/file1.txt
        git commit -qam second
        git tag -am tag v1
        git gc -q --aggressive --prune=now
        git count-objects -v | grep -v size-pack
        git repack -adq --write-bitmap-index
        git multi-pack-index write --no-progress
        git commit-graph write --reachable --no-progress
        git verify-pack .git/objects/pack/*.idx
    """, below="work")
    pair.mount.wait_sealed()
    pair.mount.remount()
    assert_stat_is_kept(pair)
    git(pair, ALL + """
        git log --stat --format='%H %s'
        git show v1:run.sh
        git archive HEAD | sha256sum
        git bundle create -q ../all.bundle --all
        git bundle verify -q ../all.bundle
    """, below="work")
    git(pair, "rm -rf work; ls -A")


def test_stat_data_of_the_index(pair):
    """A file that was written or replaced is seen as changed, though of the same size."""
    make_repository(pair)
    pair.mount.wait_sealed()
    seen = git(pair, """
        printf X | dd of=binary conv=notrunc status=none
        git diff-files --name-only
        cp -p run.sh new
        mv new run.sh
        git diff-files --name-only
        git status --short
    """, below="work")
    assert seen.splitlines() == ["binary", "binary", "run.sh", " M binary"]
    pair.mount.remount()
    git(pair, "git status --short; git diff --stat; git checkout -q .; git diff-files", below="work")


BRANCHES = scripts("""
## checkout
git checkout -q -b other
sed -i 's/line/row/' part*/sub*/file*.txt
git rm -q binary
git commit -qam rows
git checkout -q main
git status --short
sha256sum binary
git checkout -q other
ls
git checkout -q main

## stash and clean
echo stashed >> run.sh
echo new > untracked
git stash -qu
git status --short
git stash pop -q
git status --short
git checkout -q run.sh
git clean -qfdx
ls

## rebase, cherry-pick, revert
git mv part2/sub2/file2.txt moved.txt
git commit -qm moved
git rebase -q other
git log --format='%H %s'
git checkout -q -b third HEAD~1
git cherry-pick main > /dev/null
git revert --no-edit HEAD > /dev/null
git log --format=%H

## a conflict
echo ours > run.sh
git commit -qam ours
git checkout -q main
echo theirs > run.sh
git commit -qam theirs
git merge third || cat run.sh
git status --short
git checkout -q --theirs run.sh
git add run.sh
git commit -qm merged
git rev-parse HEAD

## worktree
git worktree add -q ../tree other
cd ../tree
git status --short
echo x > x
git add x
git commit -qm x
git rev-parse HEAD
cd ../work
git worktree list --porcelain
git worktree remove ../tree
git worktree prune
git branch -qD other third
git branch

## bisect and reset
git bisect start HEAD HEAD~3 > /dev/null
git bisect run grep -q ours run.sh > /dev/null
git bisect log
git bisect reset > /dev/null 2>&1
git reset -q --hard HEAD~1

## sparse checkout
git sparse-checkout set part1
ls
git sparse-checkout disable
git status --short
""")


@pytest.mark.long
def test_branches(pair):
    """Branches changed, stashed, rebased, merged with a conflict, bisected, in a second work tree."""
    make_repository(pair)
    pair.mount.wait_sealed()
    for script in BRANCHES.values():
        git(pair, script, below="work")
    pair.mount.wait_sealed()
    pair.mount.remount()
    assert_stat_is_kept(pair)
    git(pair, ALL, below="work")
    assert_same_work_trees(pair)


CLONES = {
    "hard links": "git clone -q ../work clone",
    "file": 'git clone -q "file://$PWD/../work" clone',
    "no local": "git clone -q --no-local ../work clone",
    "shared": "git clone -q --shared ../work clone",
}
MORE_CLONES = {
    "no hard links": "git clone -q --no-hardlinks ../work clone",
    "bare and back": "git clone -q --bare ../work bare.git; git clone -q bare.git clone",
    "mirror": "git clone -q --mirror ../work mirror.git\n"
              'git clone -q --depth=1 "file://$PWD/mirror.git" clone',
    "reference": 'git clone -q --reference ../work --dissociate "file://$PWD/../work" clone',
    "partial": "git -C ../work config uploadpack.allowFilter true\n"
               'git clone -q --filter=blob:none "file://$PWD/../work" clone',
}


def clone(pair, ways):
    make_repository(pair)
    pair.mount.wait_sealed()
    for name, script in ways.items():
        pair.each(lambda root: (root / name).mkdir())
        git(pair, script + "\ngit -C clone rev-parse HEAD\ngit -C clone fsck --full", below=name)
    pair.mount.wait_sealed()
    pair.mount.remount()
    for name in ways:
        assert_stat_is_kept(pair, f"{name}/clone")
    assert_same_work_trees(pair)


@pytest.mark.long
def test_clones(pair):
    """With hard links, by the protocol, and with objects shared: each is the same repository, and clean."""
    clone(pair, CLONES)


@pytest.mark.long
def test_more_clones(pair):
    """Bare, mirrored, shallow, by reference and with blobs that are fetched when needed."""
    clone(pair, MORE_CLONES)


@pytest.mark.long
def test_remotes(pair):
    """Push to a bare repository and pull from it; a submodule of it."""
    make_repository(pair)
    git(pair, """
        git init -q --bare hub.git
        git -C work push -q ../hub.git main
        git clone -q hub.git a
        git clone -q hub.git b
        cd a
        echo a > a
        git add a
        git commit -qm a
        git push -q
        cd ../b
        git pull -q
        cat a
        git rev-parse HEAD
        git submodule add -q ../hub.git sub
        git commit -qm sub
        cd ..
        git clone -q --recurse-submodules b c
        cat c/sub/a
        git -C c status --short
    """)
    pair.mount.wait_sealed()
    pair.mount.remount()
    assert_stat_is_kept(pair, "c")
    assert_stat_is_kept(pair, "c/sub")
    git(pair, ALL, below="c")
    assert_same_work_trees(pair)


@pytest.mark.parametrize("direction", ["in", pytest.param("out", marks=pytest.mark.long)])
def test_clone_across(pair, direction):
    """From the disk's own file system into the mount, and the other way, where no hard links are possible."""
    source, target = (pair.plain, pair.mount.dir) if direction == "in" else (pair.mount.dir, pair.plain)
    make_sources(source / "work", SOME if direction == "in" else FEW)
    git_in(pair, source / "work", "git init -q; git add .; git commit -qm first")
    git_in(pair, target, 'git clone -q "$FROM/work" clone', FROM=source)
    pair.mount.wait_sealed()
    pair.mount.remount()
    assert_same(without_git(tree(target / "clone")), without_git(tree(source / "work")))
    assert git_in(pair, target / "clone", "git fsck --full; git diff-files") == b""


# ---- git-lfs ----

SHARDS = 2


def make_shard(number, version=0):
    """One layer is of this version, the others are the same in each."""
    tensors = {f"layer.{n}": random_bytes(1000 * number + n, MIB // 4) for n in range(3)}
    tensors["layer.3"] = random_bytes(99 + 1000 * number + version, MIB // 4)
    return shard(tensors)


def write_model(root, version=0):
    root.mkdir(exist_ok=True)
    for number in range(SHARDS):
        write_file(root / f"model-{number}.safetensors", make_shard(number, version))
    write_file(root / "config.json", b"{}\n")


def assert_model_is(directory, version=0):
    for number in range(SHARDS):
        assert read_file(directory / f"model-{number}.safetensors") == make_shard(number, version)


def make_lfs_repository(pair):
    """A model under git-lfs, pushed to a bare repository beside it."""
    pair.each(lambda root: write_model(root / "work"))
    git(pair, """
        git init -q --bare hub.git
        url="file://$PWD/hub.git"
        cd work
        git init -q
        git lfs install --local > /dev/null
        git lfs track '*.safetensors'
        git add .
        git commit -qm model
        git remote add origin "$url"
        git push -q origin main > /dev/null 2>&1
        git lfs ls-files -l
        git cat-file -p HEAD:model-0.safetensors
        git lfs fsck
    """)


def assert_nothing_reported(mount):
    status = mount.wait_sealed()
    assert (status["wrong"], status["incomplete"], status["reports"]) == (0, 0, [])


def assert_kept_once(mount, before):
    """Two work trees, their .git/lfs, a remote: five files of each content, with the blocks of one."""
    mount.wait_sealed()
    mount.wait_disk(before + SHARDS * MIB + MIB)
    found = [path for path in mount.dir.rglob("*") if path.is_file() and path.stat().st_size > MIB]
    assert len(found) == 5 * SHARDS
    assert len({sha256(path) for path in found}) == SHARDS


@pytest.mark.long
def test_lfs(pair):
    """Track, commit, push to a file remote, clone, pull: shards and pointers as in a plain directory.

    A shard in two work trees, in their .git/lfs and in the remote is kept once.
    """
    before = pair.mount.disk()
    make_lfs_repository(pair)
    assert_nothing_reported(pair.mount)
    pair.mount.remount()
    assert_stat_is_kept(pair)
    git(pair, """
        git clone -q "file://$PWD/hub.git" clone 2> /dev/null
        cd clone
        git lfs ls-files
        git lfs fsck
        git status --short
    """)
    pair.each(lambda root: assert_model_is(root / "clone"))
    assert_kept_once(pair.mount, before)
    pair.each(lambda root: write_model(root / "work", version=1))
    git(pair, """
        cd work
        git status --short
        git commit -qam tuned
        git push -q origin main > /dev/null 2>&1
        git rev-parse HEAD
        cd ../clone
        git pull -q 2> /dev/null
        sha256sum *
        git checkout -q HEAD~1
        sha256sum *
        git checkout -q main
        git lfs prune > /dev/null
        git lfs fsck
    """)
    assert_nothing_reported(pair.mount)
    pair.mount.remount()
    for directory in ("work", "clone"):
        assert_stat_is_kept(pair, directory)
        pair.each(lambda root: assert_model_is(root / directory, version=1))


@pytest.mark.long
def test_lfs_pointers(pair):
    """With GIT_LFS_SKIP_SMUDGE a shard's name holds a pointer; git lfs pull puts the shard in its place."""
    make_lfs_repository(pair)
    git(pair, """
        export GIT_LFS_SKIP_SMUDGE=1
        git clone -q "file://$PWD/hub.git" clone
        cd clone
        cat *.safetensors
        git status --short
        git lfs pointer --check --file model-0.safetensors
        git lfs ls-files
    """)
    assert os.path.getsize(pair.mount.dir / "clone" / "model-0.safetensors") < 200
    assert_nothing_reported(pair.mount)
    pair.mount.remount()
    assert_stat_is_kept(pair, "clone")
    git(pair, """
        git lfs pull -I model-1.safetensors 2> /dev/null
        stat -c '%n %s' *
        git lfs ls-files
        git lfs fetch > /dev/null 2>&1
        git lfs checkout > /dev/null 2>&1
        stat -c '%n %s' *
        git status --short
    """, below="clone")
    for settle in (lambda: assert_nothing_reported(pair.mount), pair.mount.remount):
        settle()
        pair.each(lambda root: assert_model_is(root / "clone"))


@pytest.mark.long
def test_lfs_migrate(pair):
    """git lfs migrate import rewrites a history that has shards in it; export brings them back."""
    pair.each(lambda root: write_model(root / "work"))
    git(pair, """
        git init -q
        git add .
        git commit -qm plain
        git lfs install --local > /dev/null
        git lfs migrate import --yes --everything --include='*.safetensors' > /dev/null 2>&1
        git log --format=%H
        git lfs ls-files -l
        rm *.safetensors
        git checkout -q .
        git status --short
    """, below="work")
    pair.each(lambda root: assert_model_is(root / "work"))
    git(pair, """
        git remote add origin "file://$PWD"
        git lfs migrate export --yes --everything --include='*.safetensors' > /dev/null 2>&1
        git log --format=%H
        git lfs ls-files
        git cat-file -s HEAD:model-1.safetensors
    """, below="work")
    pair.each(lambda root: assert_model_is(root / "work"))
    assert_nothing_reported(pair.mount)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_large_repository(pair):
    """2,000 files through commit, clone, gc and checkout; removed, the store is small again."""
    empty = pair.mount.disk()
    pair.each(lambda root: make_sources(root / "work", 2000))
    git(pair, """
        cd work
        git init -q
        git add .
        git commit -qm first
        git checkout -q -b other
        sed -i 's/line/row/' part*/sub*/*.txt
        git commit -qam rows
        git checkout -q main
    """ + ALL + """
        cd ..
        git clone -q --no-local work clone
        cd clone
        git checkout -q origin/other
        git gc -q --aggressive --prune=now
    """ + ALL)
    pair.mount.wait_sealed()
    pair.mount.remount()
    for directory in ("work", "clone"):
        assert_stat_is_kept(pair, directory)
    assert_same_work_trees(pair)
    git(pair, "rm -rf work clone; ls -A")
    pair.mount.wait_sealed()
    pair.mount.wait_disk(empty + MIB)
