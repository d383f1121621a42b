"""Works on many small files."""

from work import BINDFS, BINDFS_USER, ROOT, USER, Bound, Fixture, Measure, Work, timed

MAKE_REPOSITORY = r"""
set -e
mkdir "$1"; cd "$1"; git init -q .
for i in $(seq "$2"); do mkdir -p d$((i % 50)); echo "file $i" > d$((i % 50))/$i.txt; done
git -c user.name=x -c user.email=x@x add . && git -c user.name=x -c user.email=x@x commit -qm all
"""


def make_small(place, sizes):
    place.run("mkdir", place.fixtures / "small")
    place.run(place.tools.worker, "create", place.fixtures / "small", sizes.small_files)


def make_empty(place, sizes):
    place.run("mkdir", place.dir / "fresh")


def make_repository(place, sizes):
    place.run("sh", "-c", MAKE_REPOSITORY, "sh", place.base / "repository", sizes.git_files)


SMALL = Fixture("small files", make_small, ("small",))
EMPTY = Fixture("an empty directory", make_empty, ("fresh",))
REPOSITORY = Fixture("a repository of git beside the place", make_repository, ("../repository",))


def small(kind, directory):
    def run(place, sizes):
        return (float(place.run(place.tools.worker, kind, place.dir / directory, sizes.small_files)),)
    return run


def created_and_removed(place, sizes):
    """Seconds to create them, and, when all is sealed, to remove them."""
    created = small("create", "fresh")(place, sizes)
    place.settle()
    return created + small("remove", "fresh")(place, sizes)


def emptied(place, sizes):
    place.run("find", place.dir / "fresh", "-mindepth", "1", "-delete")


def cloned(place, sizes):
    return (timed(place, "true", f"git clone -q --no-local {place.base}/repository {place.dir}/clone"),)


def remove_clone(place, sizes):
    place.run("rm", "-rf", place.dir / "clone")


AS_BINDFS = (Bound(ROOT, "speed", 1.0, BINDFS), Bound(USER, "speed", 1.0, BINDFS_USER))

WORKS = [
    Work("small files", (Measure("create small files", AS_BINDFS), Measure("remove small files", AS_BINDFS)),
         created_and_removed, (EMPTY,), tidy=emptied, heavy=True, warm_up=False),
    Work("stat small files", (Measure("stat small files", AS_BINDFS),), small("stat", "small"), (SMALL,)),
    Work("read small files", (Measure("read small files", AS_BINDFS),), small("open", "small"), (SMALL,)),
    Work("git clone", (Measure("git clone", AS_BINDFS),), cloned, (REPOSITORY,), tidy=remove_clone,
         heavy=True),
]
