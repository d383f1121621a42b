"""Times the same work on the disk, bindfs and weightfs, in turns within one run.

    python tests/bench/bench.py [--size GIB] [--rounds N] [--only TEXT] [--base DIR] [--json FILE] [--markdown FILE]

Each round does the work at every place, beginning with another one each time.
A ratio is how much faster a place is than the other: their medians' quotient.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from places import places, Tools
from works import GIB, WORKS

ROOT = Path(__file__).resolve().parent.parent.parent
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def drop_caches():
    os.sync()
    DROP_CACHES.write_text("3")


def turns(items, number):
    """The items, beginning with another one each round."""
    start = number % len(items)
    return items[start:] + items[:start]


def measure(work, here, size, rounds):
    """{place: [seconds]}"""
    for place in here:
        work.prepare(place, size)
    seconds = {place.name: [] for place in here}
    for number in range(rounds + 1):  # the first is not counted
        for place in turns(here, number):
            work.before(place, size)
            if work.cold:
                drop_caches()
            taken = work.run(place, size)
            if number:
                seconds[place.name].append(taken)
            work.tidy(place, size)
    return seconds


def system():
    def output(*command):
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return {"kernel": platform.release(), "cpus": os.cpu_count(), "memory_gib": round(memory, 1),
            "bindfs": output("bindfs", "--version"), "fuse": output("fusermount3", "--version"),
            "commit": output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")}


def ratio(seconds, place, other):
    return statistics.median(seconds[other]) / statistics.median(seconds[place])


PAIRS = [("weightfs", "disk"), ("weightfs", "bindfs"), ("weightfs ordinary", "disk"),
         ("weightfs ordinary", "bindfs ordinary")]


def table(results):
    """The results as Markdown: medians in seconds with their range, then the ratios."""
    names = list(next(iter(results.values())))
    pairs = [pair for pair in PAIRS if set(pair) <= set(names)]
    lines = ["| work | " + " | ".join(f"{name}, s" for name in names) + " | "
             + " | ".join(f"{place} × {other}" for place, other in pairs) + " |",
             "|---" * (1 + len(names) + len(pairs)) + "|"]
    for work, seconds in results.items():
        cells = [f"{statistics.median(taken):.3g} ({min(taken):.3g} to {max(taken):.3g})"
                 for taken in seconds.values()]
        cells += [f"{ratio(seconds, *pair):.2f}" for pair in pairs]
        lines.append(f"| {work} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def run(arguments):
    base = Path(tempfile.mkdtemp(prefix="weightfs-bench.", dir=arguments.base))
    base.chmod(0o755)
    here = places(base, Tools(os.environ.get("WEIGHTFS_BUILD", ROOT / "build")))
    results = {}
    mounted = []
    try:
        for place in here:
            place.mount()
            mounted.append(place)
        for work in WORKS:
            if arguments.only and arguments.only not in work.name:
                continue
            if work.cold and os.geteuid() != 0:
                print(f"{work.name}: left out, only root can drop the page cache", file=sys.stderr)
                continue
            results[work.name] = measure(work, here, int(arguments.size * GIB), arguments.rounds)
            print(table({work.name: results[work.name]}).splitlines()[-1], flush=True)
    finally:
        for place in mounted:
            place.umount()
        shutil.rmtree(base)
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=2, help="GiB of the large files (2)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="works whose name has this in it")
    parser.add_argument("--base", default=str(ROOT / "build"), help="on the disk that is measured (build/)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    results = run(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps({"system": system(), "size_gib": arguments.size, "seconds": results},
                                             indent=1))
    if arguments.markdown:
        arguments.markdown.write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
