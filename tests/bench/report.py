"""The results as Markdown, in docs/performance.md between two marks."""

import statistics

from results import growths, ratios, spread

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
PLACES = ["disk", "bindfs", "passthrough", "weightfs", "bindfs ordinary", "weightfs ordinary"]
PAIRS = [("weightfs", "disk"), ("weightfs", "bindfs"), ("weightfs", "passthrough"),
         ("weightfs ordinary", "disk"), ("weightfs ordinary", "bindfs ordinary")]


def number(value):
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def with_spread(numbers):
    least, middle, most = spread(numbers)
    return number(middle) if len(numbers) == 1 else f"{number(middle)} ({number(least)} to {number(most)})"


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def picture(name, title):
    return f"![{title}](performance/{name})\n"


# ---- works at places ----

def timed(results):
    """(name of the work, entry, name of the measure, measure) of what was timed at places."""
    for work, entry in results["works"].items():
        if entry["kind"] == "timed":
            for name, measure in entry["measures"].items():
                if measure["samples"]:
                    yield work, entry, name, measure


def verdicts(results):
    rows = []
    for _, _, name, measure in timed(results):
        for verdict in measure["verdicts"]:
            values = [number(verdict[key]) for key in ("median", "min", "max")]
            rows.append([name, verdict["place"], verdict["wanted"],
                         f"{values[0]} ({values[1]} to {values[2]})", "yes" if verdict["met"] else "**no**"])
    return rows


def times(results):
    rows = []
    for _, _, name, measure in timed(results):
        unit = measure["unit"]
        rows.append([f"{name}{f', {unit}' if unit else ''}",
                     *[with_spread(measure["samples"][place]) if measure["samples"].get(place) else "–"
                       for place in PLACES]])
    return rows


def all_ratios(results):
    rows = []
    for _, _, name, measure in timed(results):
        found = [ratios(measure["samples"], *pair) for pair in PAIRS]
        if measure["unit"] == "s" and any(found):
            rows.append([name, *[with_spread(values) if values else "–" for values in found]])
    return rows


def places_text(results):
    wanted = verdicts(results)
    if not list(timed(results)):
        return ""
    met = sum(row[4] == "yes" for row in wanted)
    parts = ["### Against what is wanted\n", f"{met} of {len(wanted)} are met.\n",
             table(["work", "mount", "wanted", "seen", "met"], wanted)]
    compared = all_ratios(results)
    if compared:
        parts += ["### Ratios of speed\n", picture("ratios.png", "ratios of speed"),
                  table(["work", *[f"{place} × {other}" for place, other in PAIRS]], compared)]
    return "\n".join([*parts, "### Numbers\n", table(["work", *PLACES], times(results))])


# ---- cost against size ----

def scale_text(results):
    entry = results["works"].get("cost against size")
    if not entry:
        return ""
    sizes = sorted({int(n) for of in entry["costs"].values() for costs in of.values() for n in costs})
    rows = []
    for (dimension, operation), growth in growths(entry).items():
        of = entry["costs"][dimension][operation]
        rows.append([dimension, operation,
                     *[number(statistics.median(of[str(n)])) if str(n) in of else "–" for n in sizes],
                     number(growth), "yes" if growth <= entry["most_growth"] else "**no**"])
    return "\n".join([
        "### Cost of one operation on one file against size\n",
        f"Medians in microseconds, of {entry['place']}. Flat or logarithmic: at the largest size no more "
        f"than {entry['most_growth']} times what it is at the smallest.\n",
        picture("scale.png", "cost against size"),
        table(["size of", "operation", *[f"{n:,}" for n in sizes], "growth", "flat or logarithmic"], rows)])


# ---- backups ----

def backups_text(results):
    entry = results["works"].get("backup of checkpoints")
    if not entry:
        return ""
    rows = []
    for name, of in entry["programs"].items():
        stored = statistics.median(of["stored"])
        speeds = [number(entry["bytes"] / 1e6 / statistics.median(of[key]))
                  for key in ("taken_in", "given_back")]
        rows.append([name, with_spread(of["taken_in"]), speeds[0], number(stored / 1e6),
                     f"{100 * stored / entry['bytes']:.1f} %", with_spread(of["given_back"]), speeds[1]])
    return "\n".join([
        "### Checkpoints in weightfs, borg, restic and casync\n",
        f"{entry['bytes'] / 1e6:,.0f} MB in {entry['files']} files: a base model, three fine-tunes, a run of "
        "LoRA, ten checkpoints of a training with the optimizer's state, two copies of the base. Restic "
        "encrypts, and casync compresses: neither can be told not to.\n",
        picture("backups.png", "backups"),
        table(["program", "taken in, s", "MB/s", "stored, MB", "of the whole", "given back, s", "MB/s"],
              rows)])


# ---- the whole ----

def machines_text(results):
    lines = ["### Machine and sizes\n"]
    for key, machine in results["machines"].items():
        works = [name for name, entry in results["works"].items() if entry["machine"] == key]
        if len(results["machines"]) > 1:
            lines.append(f"For {', '.join(works)}:\n")
        for name, value in machine.items():
            text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
            lines.append(f"- {name}: {text}")
        lines.append("")
    lines.append(table(["work", "size", "rounds", "took, s", "measured on", "commit"], [
        [name, entry["sizes"], str(entry["rounds"]), str(entry["took"]), entry["date"], entry["commit"]]
        for name, entry in results["works"].items()]))
    problems = [f"- {name}, {place}: {problem}" for name, entry in results["works"].items()
                for place, problem in entry.get("problems", {}).items()]
    if problems:
        lines += ["Could not be measured:\n", *problems]
    return "\n".join(lines)


def markdown(results):
    return "\n".join(text for text in (machines_text(results), places_text(results), scale_text(results),
                                       backups_text(results)) if text)


def update(path, results):
    """Write the results between the marks of the page, which is begun if it is not there."""
    text = path.read_text() if path.exists() else f"# Performance\n\n{BEGIN}\n{END}\n"
    before, mark, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise SystemExit(f"{path}: the lines {BEGIN} and {END} are not there")
    path.write_text(f"{before}{BEGIN}\n\n{markdown(results)}\n{END}{after}")
