"""The study's table, verdict and pictures."""

import itertools
import statistics
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from lrk.atomic import atomic_file

# Student's t at 97.5 %, by the number of seeds.
_T = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


def grouped(rows: list[dict]) -> dict[str, list[dict]]:
    """Runs by method, in the order of the rows."""
    groups: dict[str, list[dict]] = defaultdict(list)
    for row in rows:
        groups[row["method"]].append(row)
    return groups


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half the 95 % confidence interval of the mean (Student)."""
    spread = statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), _T[len(values)] * spread


def p_value(one: list[float], other: list[float]) -> float:
    """Two-sided exact permutation test of equal means.

    The share of all ways to deal the runs into two groups of these sizes whose means differ at
    least as much. It assumes no distribution; 5 against 5 runs cannot go below 2 / 252.
    """
    runs = one + other
    seen = abs(statistics.mean(one) - statistics.mean(other))
    deals = list(itertools.combinations(range(len(runs)), len(one)))
    differing = 0
    for deal in deals:
        first = [runs[n] for n in deal]
        second = [run for n, run in enumerate(runs) if n not in deal]
        differing += abs(statistics.mean(first) - statistics.mean(second)) >= seen - 1e-12
    return differing / len(deals)


def table(rows: list[dict]) -> str:
    """Markdown: share of quoted tokens predicted, mean over seeds with a 95 % interval."""
    lengths = list(rows[0]["accuracy"])
    lines = [
        "| method | " + " | ".join(f"{int(n):,}" for n in lengths) + " | tokens | FLOP |",
        "|---" * (len(lengths) + 3) + "|",
    ]
    for method, group in grouped(rows).items():
        cells = []
        for length in lengths:
            mean, half = interval([row["accuracy"][length] for row in group])
            cells.append(f"{100 * mean:.1f} ± {100 * half:.1f}")
        cells += [f"{group[0]['training_tokens']:,}", f"{group[0]['training_flop']:.2g}"]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdict(rows: list[dict], of: str = "PoSE + reach + temperature") -> str:
    """Markdown: each method minus one of them at the two longest lengths, with p."""
    groups = grouped(rows)
    lengths = list(rows[0]["accuracy"])[-2:]
    heads = [f"{int(length):,} | p" for length in lengths]
    lines = [f"| minus {of}, points | " + " | ".join(heads) + " |", "|---" * 5 + "|"]
    for method, group in groups.items():
        if method == of:
            continue
        cells = []
        for length in lengths:
            one = [row["accuracy"][length] for row in group]
            other = [row["accuracy"][length] for row in groups[of]]
            difference = 100 * (statistics.mean(one) - statistics.mean(other))
            cells += [f"{difference:+.1f}", f"{p_value(one, other):.3f}"]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def search_table(content: dict) -> str:
    """Markdown: of a file of factors, the loss of quotes that it was not found with, by plan."""
    found = content["search"]
    lines = [
        "| plan, no training | held-out loss at 1,024 | with the attention factor of longrope |",
        "|---" * 3 + "|",
    ]
    lines += [
        f"| {plan} | {loss['own']:.3f} | {loss['same']:.3f} |"
        for plan, loss in content["held_out_loss"].items()
    ]
    return "\n".join(lines) + (
        f"\n\n{found['trials']} candidates in {content['cpu_seconds']:.0f} CPU seconds: loss "
        f"{found['initial_loss']:.3f} at first, {found['loss']:.3f} at last; critical dimension "
        f"{found['critical_dimension']} (theoretical: {found['theoretical_critical_dimension']})"
    )


def draw(rows: list[dict], path: Path) -> None:
    """A line a method over length, and by depth a heat map of the methods at the two longest."""
    groups = grouped(rows)
    lengths = list(rows[0]["accuracy"])
    figure, (lines, *heats) = pyplot.subplots(1, 3, figsize=(17, 5.5), layout="constrained")
    for number, (method, group) in enumerate(groups.items()):
        points = [interval([row["accuracy"][length] for row in group]) for length in lengths]
        means, halves = zip(*points, strict=True)
        style = {"color": f"C{number % 10}", "linestyle": ("-", "--", ":")[number // 10]}
        lines.errorbar(range(len(lengths)), means, halves, marker="o", capsize=2, **style)
        lines.plot([], [], label=method, **style)
    lines.set_xticks(range(len(lengths)), [f"{int(length):,}" for length in lengths])
    lines.set_xlabel("length in tokens")
    lines.set_ylabel("quoted tokens predicted")
    lines.grid(alpha=0.3)
    lines.legend(fontsize=8)
    for heat, length in zip(heats, lengths[-2:], strict=True):
        depths = [
            [
                statistics.mean(bins)
                for bins in zip(*(r["by_depth"][length] for r in g), strict=True)
            ]
            for g in groups.values()
        ]
        image = heat.imshow(depths, aspect="auto", vmin=0, vmax=1, cmap="RdYlGn")
        count = len(depths[0])
        heat.set_xticks(range(count), [f"{n / count:.0%}" for n in range(count)])
        heat.set_xlabel(f"depth of the quoted token at {int(length):,} tokens")
        heat.set_yticks([])
    heats[0].set_yticks(range(len(groups)), list(groups))
    figure.colorbar(image, ax=heats)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    pyplot.close(figure)
