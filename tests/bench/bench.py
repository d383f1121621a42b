"""Times the same work on the disk, bindfs, libfuse's passthrough example and weightfs, in turns in one run.

Each round does the work at every place, beginning with another one each time, so that a ratio compares what
was done within the same minute. Some works are of another kind: a large store, cost against size, and the
comparison with programs for backups. docs/performance.md says what all of it means.
"""

import argparse
import dataclasses
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import machine
import models
import places as places_module
import report
import results as results_module
from places import Tools, mounts_below, places
from work import GIB, MIB, Special, Sizes, TINY, can_drop_caches
from works import WORKS

ROOT = Path(__file__).resolve().parent.parent.parent


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


class Bench:
    """All that is mounted and made for a run. `end` leaves nothing of it, whatever happened."""

    def __init__(self, arguments, sizes):
        self.sizes = sizes
        self.say = say
        self.made_user = os.geteuid() == 0 and places_module.make_user()
        self.base = Path(tempfile.mkdtemp(prefix="weightfs-bench.", dir=arguments.base)).resolve()
        self.base.chmod(0o755)
        self.here = []
        self.extras = []
        self.tools = None
        self.having = {}  # {place: fixtures that are there}
        self.arguments = arguments
        self.commit = machine.commit(ROOT)

    def begin(self):
        self.tools = Tools(os.environ.get("WEIGHTFS_BUILD", ROOT / "build"), self.base,
                           self.arguments.fuse_examples)
        self.here = places(self.base, self.tools, say)
        for place in self.here:
            place.mount()
            self.having[place] = {}

    def text_of(self, error):
        """Without the name of a directory that is gone afterwards."""
        return str(error).replace(f"{self.base}/", "")

    def has(self, kind):
        return any(type(place) is kind for place in self.here)

    def extra(self, kind, directory):
        """Another place of a kind, not mounted yet."""
        place = kind(self.base, self.tools, directory)
        self.extras.append(place)
        return place

    def remove(self, place):
        self.extras.remove(place)
        shutil.rmtree(place.base)

    def clear(self, directory):
        """End what a work that failed has left."""
        for place in list(self.extras):
            problem = place.end()
            if problem:
                say(f"{place.base.name}: {problem}")
            self.remove(place)
        shutil.rmtree(self.base / directory, ignore_errors=True)

    def end(self):
        models.server.stop()
        for place in [*self.extras, *self.here]:
            problem = place.end()
            if problem:
                say(f"{place.base.name}: {problem}")
        left = mounts_below(self.base)
        if left:
            say(f"still mounted, and left alone: {', '.join(left)}")
        else:
            shutil.rmtree(self.base, ignore_errors=True)
        if self.made_user:
            places_module.remove_user()


# ---- works at places ----

def turns(items, number):
    """The items, beginning with another one each round."""
    start = number % len(items)
    return items[start:] + items[:start]


def make_fixtures(bench, work, place):
    for fixture in work.needs:
        if fixture.name not in bench.having[place]:
            fixture.make(place, bench.sizes)
            bench.having[place][fixture.name] = fixture
            place.settle()


def remove_fixtures(bench, later):
    """Those that no later work needs."""
    needed = {fixture.name for work in later if not isinstance(work, Special) for fixture in work.needs}
    for place, having in bench.having.items():
        for name in [name for name in having if name not in needed]:
            try:
                for path in having.pop(name).paths:
                    place.run("rm", "-rf", place.dir / path)
                place.settle()
            except RuntimeError as error:
                say(f"{name}, {place.name}: {error}")


def one_round(bench, work, place):
    work.before(place, bench.sizes)
    os.sync()
    numbers = work.run(place, bench.sizes)
    work.tidy(place, bench.sizes)
    place.settle()
    return numbers


def measure(bench, work):
    """What is kept of a work: the samples of each measure at each place."""
    here = [place for place in bench.here if work.places is None or place.name in work.places]
    rounds = bench.sizes.heavy_rounds if work.heavy else bench.sizes.rounds
    samples = {one.name: {} for one in work.measures}
    problems = {}

    def guarded(step, place, *arguments):
        """Without the place from then on, if it fails there."""
        try:
            return step(bench, work, place, *arguments)
        except (RuntimeError, OSError, ValueError) as error:
            problems[place.name] = bench.text_of(error)
            say(f"{work.name}, {place.name}: {error}")
            return None

    for place in here:
        guarded(make_fixtures, place)
    for number in range(-1 if work.warm_up else 0, rounds):
        for place in turns([place for place in here if place.name not in problems], max(number, 0)):
            numbers = guarded(one_round, place)
            for one, value in zip(work.measures, numbers or [], strict=bool(numbers)):
                if number >= 0 and value is not None:
                    samples[one.name].setdefault(place.name, []).append(value)
    for found in samples.values():
        for name in problems:
            found.pop(name, None)
    return {"measures": {one.name: {"unit": one.unit, "samples": samples[one.name]} for one in work.measures},
            "problems": problems, "rounds": rounds}


def run_work(bench, work):
    """The entry of a work."""
    begin = time.monotonic()
    say(f"{work.name} …")
    if isinstance(work, Special):
        entry = {"kind": work.kind} | work.measure(bench)
        bounds = work.bounds
    else:
        entry = {"kind": "timed"} | measure(bench, work)
        bounds = {one.name: one.bounds for one in work.measures}
    if entry["kind"] == "timed":
        for name, found in entry["measures"].items():
            found["verdicts"] = results_module.judge(found, bounds[name])
    seconds = time.monotonic() - begin
    for line in summary(entry):
        say(f"  {line}")
    say(f"{work.name}: {seconds:.0f} s")
    return entry | {"date": time.strftime("%Y-%m-%d"), "commit": bench.commit, "took": round(seconds),
                    "sizes": sizes_text(bench.sizes, work)}


def summary(entry):
    if entry["kind"] != "timed":
        return
    for name, found in entry["measures"].items():
        numbers = ", ".join(f"{place} {report.with_spread(values)}"
                            for place, values in found["samples"].items())
        yield f"{name}: {numbers} {found['unit']}"
        for verdict in found["verdicts"]:
            yield (f"    {verdict['place']} {report.number(verdict['median'])}, wanted {verdict['wanted']}: "
                   f"{'met' if verdict['met'] else 'NOT MET'}")


def sizes_text(sizes, work):
    """What is to be known of the sizes to compare two runs."""
    large, twice, model = (f"{size / GIB:.3g} GiB" for size in (sizes.large, 2 * sizes.large, sizes.model))
    parts = {"from_pretrained": model, "save_pretrained": model, "write": twice, "cp -r": twice,
             "seal": f"{twice} in 4 shards", "git clone": f"{sizes.git_files:,} files",
             "large store": f"{sizes.objects:,} objects, {sizes.files:,} files",
             "cost against size": f"{sizes.scale[0]:,} to {sizes.scale[-1]:,}",
             "backup of checkpoints": f"base model of {sizes.set / MIB:g} MiB"}
    if "small files" in work.name:
        return f"{sizes.small_files:,} files"
    return parts.get(work.name, large)


# ---- the whole ----

def chosen(arguments):
    if not arguments.only:
        return WORKS
    return [work for work in WORKS if any(text in work.name for text in arguments.only)]


def sizes_of(arguments):
    sizes = TINY if arguments.quick else Sizes()
    given = {"large": arguments.size and int(arguments.size * GIB), "model": arguments.model and
             int(arguments.model * GIB), "set": arguments.set and int(arguments.set * MIB),
             "rounds": arguments.rounds, "heavy_rounds": arguments.rounds and min(arguments.rounds,
                                                                                  sizes.heavy_rounds),
             "backup_rounds": arguments.backup_rounds, "objects": arguments.objects, "files": arguments.files,
             "scale": arguments.scale and tuple(arguments.scale)}
    return dataclasses.replace(sizes, **{key: value for key, value in given.items() if value})


def write(results, directory):
    """The page, its pictures, and the results that both are made of."""
    import plots

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "performance").mkdir(exist_ok=True)
    results_module.save(results, directory / "performance" / "results.json")
    report.update(directory / "performance.md", results)
    plots.draw(results, directory / "performance")


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def ignore_signals():
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def stop(number, frame):
    """The first signal ends the run in order; further ones must not keep it from cleaning up."""
    ignore_signals()
    raise SystemExit(128 + number)


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", action="append", metavar="TEXT",
        help="works whose name has this in it (may be given again)")
    add("--list", action="store_true", help="the works, and what is wanted of them")
    add("--quick", action="store_true", help="tiny sizes: does everything work?")
    add("--size", type=float, metavar="GIB", help="of the large file (2); twice that is written and copied")
    add("--model", type=float, metavar="GIB", help="of transformers' model (1)")
    add("--set", type=float, metavar="MIB", help="of the base model among the checkpoints for backups (64)")
    add("--objects", type=int, help="of the large store (1000000)")
    add("--files", type=int, help="of the large store (100000)")
    add("--scale", type=int, nargs="+", metavar="N",
        help="the sizes that cost is measured against (10³ to 10⁶)")
    add("--rounds", type=int, help="of each work (5; 3 of those that take long)")
    add("--backup-rounds", type=int, help="of each program for backups (1)")
    add("--base", default=str(ROOT / "build"), help="a directory on the disk that is measured (build/)")
    add("--fuse-examples", metavar="DIR", help="where libfuse's examples were built")
    add("--json", type=Path, metavar="FILE", help="write this run's results here")
    add("--write", action="store_true", help="merge the results into performance.md and its pictures")
    add("--docs", type=Path, metavar="DIR", help="where performance.md is (docs/)")
    return parser.parse_args()


def show_list():
    for work in WORKS:
        print(work.name)
        bounds = work.bounds if isinstance(work, Special) else {one.name: one.bounds for one in work.measures}
        for name, of in bounds.items():
            print(f"    {name}" + "".join(f"\n        {bound.place}: {bound.text('')}" for bound in of))


def check_room(bench):
    """Six places with the file twice, and a copy."""
    wanted, free = 14 * bench.sizes.large, shutil.disk_usage(bench.base).free
    if free < wanted:
        raise SystemExit(f"bench: {free / GIB:.1f} GiB are free, {wanted / GIB:.1f} needed (--size, --base)")


def try_work(bench, work):
    """Its entry; None if it could not be done at all."""
    try:
        return run_work(bench, work)
    except (RuntimeError, OSError, ValueError) as error:
        say(f"{work.name} could not be measured: {error}")
        bench.clear("backup")
        return None


def run(arguments, results):
    """Add the entry of each work to the results; what could not be done."""
    failed = []
    bench = Bench(arguments, sizes_of(arguments))
    try:
        check_room(bench)
        bench.begin()
        describing = machine.describe(bench.base, bench.tools)
        works = chosen(arguments)
        for number, work in enumerate(works):
            entry = try_work(bench, work)
            remove_fixtures(bench, works[number + 1:])
            if entry is None:
                failed.append(work.name)
                continue
            failed += [f"{work.name} at {name}" for name in entry.get("problems", {}) if "weightfs" in name]
            results_module.add(results, work.name, entry, describing)
            results_module.order(results, [known.name for known in WORKS])
            if arguments.write:  # after each work: what was measured stays, whatever comes later
                write(results, arguments.docs)
    finally:
        ignore_signals()
        bench.end()
    return failed


def main():
    arguments = parse()
    if arguments.list:
        show_list()
        return 0
    if arguments.write and arguments.docs is None:
        if arguments.quick:
            raise SystemExit("bench: --quick does not write into docs/: name another directory by --docs")
        arguments.docs = ROOT / "docs"
    if not chosen(arguments):
        raise SystemExit("bench: no work has such a name; --list shows them")
    for number in SIGNALS:
        signal.signal(number, stop)
    if not can_drop_caches():
        say("only root can drop the page cache: nothing is measured cold")
    kept = results_module.load(arguments.docs / "performance" / "results.json") if arguments.write else None
    results = kept or {"machines": {}, "works": {}}
    failed = run(arguments, results)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    print(report.markdown(results))
    if failed:
        say(f"FAILED: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
