"""The picture to put beside a table: a row for every model, a column for every prompt."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from rtdmd_lightning.data.prompts import spread
from rtdmd_lightning.evaluation.results import SetResult
from rtdmd_lightning.evaluation.settings import Gallery
from rtdmd_lightning.utils.files import appearing_at

SMALL_SIDE = 128  # images up to this side are enlarged with hard pixel edges: nothing is to be smoothed over
CELL = 1.0  # inches
CAPTION = 17  # letters to a line
RIGHT, WRONG = "#2e7d32", "#c62828"  # frames: green and solid, red and dotted for those who do not tell the two apart


def save_side_by_side(
    rows: Mapping[str, Sequence[Image.Image]],
    prompts: Sequence[str],
    path: Path,
    right: Mapping[str, Sequence[bool]] | None = None,
) -> None:
    """Write a PNG of the rows, by name, of as many images as there are prompts; these stand above the columns.

    With `right`, whether an image is right by row and prompt, every image has a frame, and every row tells how many are right.
    """
    figure = Figure(figsize=(CELL * (len(prompts) + 1.5), CELL * (len(rows) + 0.7)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.04, h_pad=0.04, wspace=0.0, hspace=0.0)  # type: ignore[union-attr, call-arg]
    cells = figure.subplots(len(rows), len(prompts), squeeze=False)
    for (name, images), of_row in zip(rows.items(), cells, strict=True):
        for image, cell in zip(images, of_row, strict=True):
            cell.imshow(image, interpolation="nearest" if max(image.size) <= SMALL_SIDE else "antialiased")
            cell.set(xticks=[], yticks=[])
            cell.spines[:].set_visible(False)
        label = _lines(name)
        if right is not None:
            label += f"\n{sum(right[name])} of {len(prompts)} right"
            for is_right, cell in zip(right[name], of_row, strict=True):
                _frame(cell, is_right)
        of_row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9, parse_math=False)
    for prompt, cell in zip(prompts, cells[0], strict=True):
        cell.set_title(_lines(prompt), fontsize=7, parse_math=False)
    with appearing_at(path) as partial:
        figure.savefig(partial, format="png", dpi=120, metadata={"Software": None})


def write_side_by_side(
    result: SetResult, folder: Path, gallery: Gallery, path: Path, verdict: str | None = None
) -> None:
    """Of an evaluation's prompt set, some prompts; `folder` is what its files are relative to.

    `verdict` is the reward whose score 1 marks an image as right.
    """
    chosen = spread(len(result.metadata), gallery.side_by_side)
    rows = {
        entry: [_thumbnail(folder / files[index], gallery.side) for index in chosen]
        for entry, files in result.files.items()
    }
    right = None
    if verdict is not None:
        right = {entry: [scores[verdict][index] == 1 for index in chosen] for entry, scores in result.scores.items()}
    save_side_by_side(rows, [result.metadata[index]["prompt"] for index in chosen], path, right)


def _frame(cell: Axes, is_right: bool) -> None:
    cell.spines[:].set(
        visible=True, linewidth=2.0, color=RIGHT if is_right else WRONG, linestyle="-" if is_right else ":"
    )


def _lines(text: str) -> str:
    """A long text's first words alone."""
    return "\n".join(textwrap.wrap(text, CAPTION, max_lines=4, placeholder="…"))


def _thumbnail(path: Path, side: int) -> Image.Image:
    with Image.open(path) as image:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        return image.convert("RGB")
