"""The README's figure of the method: `make figures` writes `method_light.svg` and `method_dark.svg` beside this file.

The same input gives the same bytes, so a test compares the committed files with what this script draws.
"""

import sys
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

WIDTH, HEIGHT = 10.0, 3.5  # inches, which are also the units of all coordinates
THEMES = {  # ink, quiet ink, and an accent for each of teacher, stage 1, stage 2
    "light": ("#1f2328", "#59636e", ("#6e7781", "#0969da", "#8250df")),
    "dark": ("#f0f6fc", "#9198a1", ("#9198a1", "#4493f8", "#ab7df8")),
}
BOXES = (
    ("Teacher", "the base model alone", ("28 to 50 steps, with CFG",), "no adapters"),
    (
        "Stage 1: AC-DMD",
        "the cold start: 4 steps, no CFG",
        (
            "The difference of teacher and fake score",
            "moves the samples of every step towards",
            "the teacher's distribution",
        ),
        "adapters: generator 1, fake score 1",
    ),
    (
        "Stage 2: RTDMD",
        "4 steps, no CFG, better by the rewards",
        ("Noisy steps: policy gradient (SubGRPO)", "Last step: reward back-propagated", "Regulariser: AC-DMD"),
        "adapters: generator 2 on 1, fake score 2 on 1",
    ),
)
LEFT, BOX_WIDTH = (0.1, 2.85, 6.55), (2.25, 3.2, 3.35)
TOP, BOX_HEIGHT = 1.45, 2.0
BASE, BASE_HEIGHT = 0.1, 0.45


def draw(theme: str) -> Figure:
    """Three boxes in a row, each with what it does and its adapters, on one base."""
    ink, quiet, accents = THEMES[theme]
    figure = Figure(figsize=(WIDTH, HEIGHT))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.axis("off")

    def box(left: float, bottom: float, width: float, height: float, color: str) -> None:
        style = "round,pad=0,rounding_size=0.08"
        axes.add_patch(FancyBboxPatch((left, bottom), width, height, style, fill=False, edgecolor=color, linewidth=1.6))

    def arrow(start: tuple[float, float], end: tuple[float, float]) -> None:
        axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": quiet, "linewidth": 1.4})

    for (title, what, lines, adapters), left, width, accent in zip(BOXES, LEFT, BOX_WIDTH, accents, strict=True):
        middle = left + width / 2
        box(left, TOP, width, BOX_HEIGHT, accent)
        axes.text(middle, TOP + 1.7, title, color=accent, fontsize=13, weight="bold", ha="center", va="center")
        axes.text(middle, TOP + 1.35, what, color=ink, fontsize=10, ha="center", va="center")
        for number, line in enumerate(lines):
            axes.text(middle, TOP + 0.9 - 0.3 * number, line, color=quiet, fontsize=9, ha="center", va="center")
        box(left + 0.15, BASE + BASE_HEIGHT + 0.1, width - 0.3, 0.36, accent)
        axes.text(middle, BASE + BASE_HEIGHT + 0.28, adapters, color=ink, fontsize=9, ha="center", va="center")
        arrow((middle, TOP), (middle, BASE + BASE_HEIGHT + 0.46))
    for start, end in ((0, 1), (1, 2)):
        arrow((LEFT[start] + BOX_WIDTH[start], TOP + 1.0), (LEFT[end], TOP + 1.0))
    box(LEFT[0], BASE, WIDTH - 2 * LEFT[0], BASE_HEIGHT, ink)
    base = "one frozen base model in memory; teacher, fake score, generator and its average are LoRA adapters that are switched"
    axes.text(WIDTH / 2, BASE + BASE_HEIGHT / 2, base, color=ink, fontsize=10, ha="center", va="center")
    return figure


def main(folder: Path) -> None:
    """Write a file for each theme."""
    # Text as outlines, so that it looks the same everywhere; no date and fixed ids, so that the bytes are the same.
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "method", "font.family": "DejaVu Sans"}):
        for theme in THEMES:
            draw(theme).savefig(
                folder / f"method_{theme}.svg", transparent=True, metadata={"Date": None, "Creator": None}
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
