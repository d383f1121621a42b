"""What was measured, kept as JSON: merged by work, and judged by what is wanted.

    {"machines": {ID: what machine.describe() says},
     "works": {NAME: {"kind", "date", "commit", "machine": ID, …}}}

kind "timed": "measures": {NAME: {"unit", "samples": {PLACE: [number of each round]}, "verdicts": […]}}.
"""

import hashlib
import json
import statistics


def load(path):
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {"machines": {}, "works": {}}


def add(results, name, entry, machine):
    """Put a work in the place of what was there of it."""
    key = hashlib.sha256(json.dumps(machine, sort_keys=True).encode()).hexdigest()[:8]
    results["machines"][key] = machine
    results["works"][name] = entry | {"machine": key}
    used = {work["machine"] for work in results["works"].values()}
    results["machines"] = {key: value for key, value in results["machines"].items() if key in used}


def order(results, names):
    """Sort the works as they are here; what is no work any more goes."""
    results["works"] = {name: results["works"][name] for name in names if name in results["works"]}


def save(results, path):
    new = path.with_suffix(".new")
    new.write_text(json.dumps(results, indent=1) + "\n")
    new.replace(path)


def spread(numbers):
    """(minimum, median, maximum)"""
    return min(numbers), statistics.median(numbers), max(numbers)


def ratios(samples, place, other):
    """How many times as fast as the other a place was, in each round; None where either was not measured.

    The places take turns within a round, so that what else the machine does hits both.
    """
    ours, theirs = samples.get(place), samples.get(other)
    if not ours or not theirs or len(ours) != len(theirs):
        return None
    return [b / a for a, b in zip(ours, theirs, strict=True)]


def seen(samples, bound):
    """The numbers that a bound is about, one a round; None where there are none."""
    if bound.how in ("speed", "time"):
        found = ratios(samples, bound.place, bound.other)
        return found if bound.how == "speed" or found is None else [1 / ratio for ratio in found]
    return samples.get(bound.place) or None


def judge(measure, bounds):
    """A verdict for each bound that something was measured of."""
    verdicts = []
    for bound in bounds:
        numbers = seen(measure["samples"], bound)
        if numbers is None:
            continue
        least, middle, most = spread(numbers)
        met = middle >= bound.value if bound.how in ("speed", "at least") else middle <= bound.value
        verdicts.append({"place": bound.place, "wanted": bound.text(measure["unit"]), "min": least,
                         "median": middle, "max": most, "met": met})
    return verdicts


def growths(entry):
    """{(dimension, operation): how many times its cost at the smallest size it has at the largest}"""
    found = {}
    for dimension, operations in entry["costs"].items():
        for operation, of in operations.items():
            sizes = sorted(of, key=int)
            first, last = statistics.median(of[sizes[0]]), statistics.median(of[sizes[-1]])
            found[dimension, operation] = last / first
    return found
