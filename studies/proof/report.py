"""The study's table and pictures."""

import statistics
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

# Student's t at 97.5 %, by the number of seeds.
_T = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
_NORMAL = 1.96


def grouped(results: list[dict]) -> dict[str, list[dict]]:
    """Runs by method, in the order of their first appearance."""
    groups: dict[str, list[dict]] = defaultdict(list)
    for row in results:
        groups[row["method"]].append(row)
    return groups


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half the 95 % confidence interval of the mean (Student)."""
    spread = statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), _T.get(len(values), _NORMAL) * spread


def table(results: list[dict]) -> str:
    """Markdown: share of quoted tokens predicted, mean over seeds with a 95 % interval."""
    lengths = list(results[0]["accuracy"])
    lines = [
        "| method | " + " | ".join(f"{int(length):,}" for length in lengths) + " | tokens | FLOP |",
        "|---" * (len(lengths) + 3) + "|",
    ]
    for method, rows in grouped(results).items():
        cells = []
        for length in lengths:
            mean, half = interval([row["accuracy"][length] for row in rows])
            cells.append(f"{mean:.1%} ± {half:.1%}")
        cells += [f"{rows[0]['training_tokens']:,}", f"{rows[0]['training_flop']:.2g}"]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(results: list[dict], path: Path) -> None:
    """A line a method over length, and a heat map of method by depth at the longest trained."""
    groups = grouped(results)
    lengths = list(results[0]["accuracy"])
    target = lengths[-2]
    figure, (lines, heat) = pyplot.subplots(1, 2, figsize=(13, 5), layout="constrained")
    for method, rows in groups.items():
        points = [interval([row["accuracy"][length] for row in rows]) for length in lengths]
        means, halves = zip(*points, strict=True)
        lines.errorbar(range(len(lengths)), means, halves, marker="o", capsize=2, label=method)
    lines.set_xticks(range(len(lengths)), [f"{int(length):,}" for length in lengths])
    lines.set_xlabel("length in tokens")
    lines.set_ylabel("quoted tokens predicted")
    lines.grid(alpha=0.3)
    lines.legend(fontsize=8)
    depth = [
        [
            statistics.mean(values)
            for values in zip(*(r["by_depth"][target] for r in rows), strict=True)
        ]
        for rows in groups.values()
    ]
    image = heat.imshow(depth, aspect="auto", vmin=0, vmax=1, cmap="RdYlGn")
    heat.set_yticks(range(len(groups)), list(groups))
    bins = len(depth[0])
    heat.set_xticks(range(bins), [f"{n / bins:.0%}" for n in range(bins)])
    heat.set_xlabel(f"depth of the quoted span at {int(target):,} tokens")
    figure.colorbar(image, ax=heat)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=130)
    pyplot.close(figure)
    temporary.replace(path)
