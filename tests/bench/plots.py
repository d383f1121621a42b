"""The results as pictures."""

import statistics

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

from report import PAIRS, timed
from results import ratios, spread

COLORS = ["#1f5fa8", "#6aa3d9", "#a9c9e8", "#b5541c", "#eba06a"]
DOTS = 110


def draw(results, directory):
    """All pictures that there is something to show in; their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn = [draw_one(results, directory) for draw_one in (draw_ratios, draw_scale, draw_backups)]
    return [path for path in drawn if path]


def finish(figure, path, rect=(0, 0, 1, 1)):
    figure.tight_layout(rect=rect)
    figure.savefig(path, dpi=DOTS)
    pyplot.close(figure)
    return path


def draw_ratios(results, directory):
    """Bars: how many times as fast; whiskers from the slowest round to the fastest."""
    rows = [(name, [ratios(measure["samples"], *pair) for pair in PAIRS])
            for _, _, name, measure in timed(results) if measure["unit"] == "s"]
    rows = [(name, found) for name, found in rows if any(found)][::-1]
    if not rows:
        return None
    figure, axes = pyplot.subplots(figsize=(10, 1.5 + 0.62 * len(rows)))
    height = 0.8 / len(PAIRS)
    for at, (pair, color) in enumerate(zip(PAIRS, COLORS, strict=True)):
        having = [(row, spread(found[at])) for row, (_, found) in enumerate(rows) if found[at]]
        if not having:
            continue
        middles = [middle for _, (_, middle, _) in having]
        axes.barh([row + 0.4 - height * (at + 0.5) for row, _ in having], middles, height, color=color,
                  label=f"{pair[0]} × {pair[1]}",
                  xerr=[[middle - least for _, (least, middle, _) in having],
                        [most - middle for _, (_, middle, most) in having]],
                  error_kw={"elinewidth": 0.8, "ecolor": "#333333"})
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.axvline(1, color="#333333", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("times as fast (logarithmic): right of 1 weightfs is the faster one")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, fontsize="small", frameon=False)
    axes.grid(axis="x", which="both", linewidth=0.3)
    axes.margins(y=0.01)
    return finish(figure, directory / "ratios.png")


def draw_scale(results, directory):
    """Lines: microseconds of each operation against each size."""
    entry = results["works"].get("cost against size")
    if not entry:
        return None
    figure, grid = pyplot.subplots(2, 2, figsize=(11, 8), sharey=True)
    for axes, (dimension, operations) in zip(grid.flat, entry["costs"].items(), strict=True):
        for operation, of in operations.items():
            sizes = sorted(map(int, of))
            axes.plot(sizes, [statistics.median(of[str(n)]) for n in sizes], marker="o", markersize=3,
                      label=operation)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(dimension)
        axes.set_ylabel("µs, median")
        axes.grid(which="both", linewidth=0.3)
    handles, names = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="upper center", ncols=len(names), fontsize="small", frameon=False)
    return finish(figure, directory / "scale.png", rect=(0, 0, 1, 0.96))


def draw_backups(results, directory):
    entry = results["works"].get("backup of checkpoints")
    if not entry or not entry["programs"]:
        return None
    names = list(entry["programs"])[::-1]
    colors = ["#1f5fa8" if name.startswith("weightfs") else "#999999" for name in names]
    figure, grid = pyplot.subplots(1, 3, figsize=(12, 1.5 + 0.4 * len(names)), sharey=True)
    for axes, (key, title, unit) in zip(grid, [("taken_in", "taken in, s", 1), ("stored", "stored, MB", 1e6),
                                               ("given_back", "given back, s", 1)], strict=True):
        values = [statistics.median(entry["programs"][name][key]) / unit for name in names]
        bars = axes.barh(names, values, color=colors)
        axes.bar_label(bars, [f"{value:,.3g}" for value in values], fontsize="small", padding=2)
        axes.set_title(title, fontsize="medium")
        axes.margins(x=0.18)
    return finish(figure, directory / "backups.png")
