"""Draws the replay of the trace: ``python -m tests.trace.plot FILE.json FILE.svg``, with matplotlib.

Matplotlib is no dependency of the project; any interpreter that has it will do.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

COLOURS = {"first fit": "#b45309", "best fit": "#111827", "hal, packing": "#1d4ed8"}
DASHES = {"first fit": "-", "best fit": "--", "hal, packing": "-"}


def draw(data: dict[str, Any], target: Path) -> None:
    """Write the plot."""
    try:
        import matplotlib
    except ImportError:
        sys.exit("matplotlib is not here: run this by an interpreter that has it")
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "hal", "svg.fonttype": "path", "font.size": 9, "axes.grid": True})
    matplotlib.rcParams.update({"grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False})
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(10.5, 3.3), layout="constrained")
    for name, curve in data["curves"].items():
        # Best fit on top, in dashes: where both choose alike, both can be seen.
        style = {"color": COLOURS[name], "linestyle": DASHES[name], "label": name, "zorder": 3 if "best" in name else 2}
        asked = [100 * point[0] for point in curve]
        left.plot(asked, [100 * point[1] for point in curve], **style)
        middle.plot(asked, [100 * point[2] for point in curve], **style)
        refused = [
            100 * sum(of["refused"].get(size, 0) for size in ("4", "8")) / sum(of["asked"][size] for size in ("4", "8"))
            for of in data["churn"][name]
        ]
        right.plot([100 * level for level in data["levels"]], refused, marker="o", markersize=4, **style)
    left.set(title="filling up: GPUs allocated", xlabel="asked for, % of the GPUs", ylabel="% of the GPUs")
    middle.set(title="filling up: machines in use", xlabel="asked for, % of the GPUs", ylabel="% of the machines")
    right.set(title="held full: tasks of 4 and 8 GPUs refused", xlabel="GPUs in use, %", ylabel="% of those tasks")
    right.set_ylim(-4, 104)
    left.legend(frameon=False)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
