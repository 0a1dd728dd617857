"""`report.html`: tables, histograms and the images side by side, in one file that opens from the disk.

Everything is in the page (images as data URIs, style and script inline) and nothing is fetched: its own security policy
forbids that.
"""

import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from rtdmd_lightning.data.prompts import spread
from rtdmd_lightning.evaluation.images import data_uri
from rtdmd_lightning.evaluation.results import Results, SetResult
from rtdmd_lightning.evaluation.settings import Gallery
from rtdmd_lightning.evaluation.side_by_side import SMALL_SIDE
from rtdmd_lightning.evaluation.tables import comparison_tables, score_decimals, tag_tables
from rtdmd_lightning.utils.files import write_text

PAGE = Path(__file__).parent / "page"
BINS = 24
COLORS = 8  # in report.css
LIBRARIES = ("torch", "diffusers", "transformers", "peft")


@dataclass(frozen=True)
class Provenance:
    """When, by which command and with which versions the images were drawn."""

    date: str
    command: str
    versions: Mapping[str, str]

    @staticmethod
    def of_command(arguments: Sequence[str], now: datetime) -> "Provenance":
        """Of this process; `now` is a time with its zone."""
        versions = {"Python": platform.python_version()} | {name: version(name) for name in LIBRARIES}
        return Provenance(f"{now:%Y-%m-%d %H:%M %Z}", shlex.join(["rtdmd", "evaluate", *arguments]), versions)


@dataclass(frozen=True)
class Histogram:
    """How often each of some bins between `low` and `high` occurs, by entry, as a share of the tallest; and the means."""

    reward: str
    low: float
    high: float
    heights: dict[str, list[float]]
    means: dict[str, float]

    def position(self, value: float) -> float:
        """Of a score, in [0, 1] along the axis."""
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class GalleryRow:
    """A prompt with its images (data URIs), their files beside the page, and its scores, all in the order of the entries."""

    index: int
    prompt: str
    tag: str
    images: list[str]
    files: list[str]
    scores: list[list[float]]


def write_report(results: Results, folder: Path, gallery: Gallery, provenance: Provenance) -> Path:
    """Write `report.html` into the evaluation's folder, where the images lie too."""
    environment = Environment(
        loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    names = list(results.entries)
    page = environment.get_template("report.html.jinja").render(
        results=results,
        names=names,
        colors={name: f"c{index % COLORS}" for index, name in enumerate(names)},
        sets={name: _set_view(results, name, folder, gallery) for name in results.sets},
        style=(PAGE / "report.css").read_text(encoding="utf-8"),
        script=(PAGE / "report.js").read_text(encoding="utf-8"),
        describe=describe,
        provenance=provenance,
        settings_text=settings_text(results),
    )
    path = folder / "report.html"
    write_text(page.lstrip(), path)
    return path


def histogram(reward: str, scores: Mapping[str, list[float]]) -> Histogram:
    """Of one reward's scores by entry, on an axis shared by the entries."""
    edges = np.histogram_bin_edges(np.concatenate(list(scores.values())), bins=BINS)
    counts = {entry: np.histogram(values, bins=edges)[0] for entry, values in scores.items()}
    tallest = max(int(count.max()) for count in counts.values())
    return Histogram(
        reward,
        float(edges[0]),
        float(edges[-1]),
        {entry: (count / tallest).tolist() for entry, count in counts.items()},
        {entry: float(np.mean(values)) for entry, values in scores.items()},
    )


def describe(settings: Mapping[str, Any]) -> str:
    """An entry's settings in a few words."""
    steps = settings["steps"]
    parts = [
        f"{settings['backbone']['init_args']['resolution']} px",
        f"{steps} steps" if isinstance(steps, int) else f"timesteps {', '.join(map(str, steps))}",
        "no CFG" if settings["guidance_scale"] == 1 else f"CFG {settings['guidance_scale']:g}",
        f"η {settings['eta']:g}",
        f"seed {settings['seed']}",
    ]
    return ", ".join(parts)


def settings_text(results: Results) -> str:
    """The entries and the sets' rewards, as YAML."""
    sets = {
        name: {"prompts": result.source, "rewards": list(result.reward_settings.values())}
        for name, result in results.sets.items()
    }
    # By way of JSON: there are paths among the options.
    plain = json.loads(json.dumps({"entries": results.entries, "sets": sets}, default=str))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def image_decimals(result: SetResult) -> dict[str, int]:
    """By reward: the decimals of a single image's score; none where all are whole numbers, e.g. of right and wrong."""
    return {
        reward: 0
        if all(score == round(score) for of_entry in result.scores.values() for score in of_entry[reward])
        else n
        for reward, n in score_decimals(result).items()
    }


def _set_view(results: Results, name: str, folder: Path, gallery: Gallery) -> dict[str, Any]:
    result = results.sets[name]
    rows = [
        _gallery_row(result, index, folder, gallery.side) for index in spread(len(result.metadata), gallery.prompts)
    ]
    with Image.open(folder / next(iter(result.files.values()))[0]) as image:
        is_small = max(image.size) <= SMALL_SIDE
    return {
        "result": result,
        "tables": comparison_tables(results, name),
        "tag_tables": tag_tables(results, name),
        "histograms": [
            histogram(reward, {entry: scores[reward] for entry, scores in result.scores.items()})
            for reward in result.rewards
        ],
        "digits": score_decimals(result),
        "image_digits": image_decimals(result),
        "rows": rows,
        "tags": list(dict.fromkeys(row.tag for row in rows if row.tag)),
        "is_small": is_small,
    }


def _gallery_row(result: SetResult, index: int, folder: Path, side: int) -> GalleryRow:
    metadata = result.metadata[index]
    return GalleryRow(
        index,
        metadata["prompt"],
        metadata.get("tag", ""),
        [data_uri(folder / files[index], side) for files in result.files.values()],
        [files[index].as_posix() for files in result.files.values()],
        [[scores[index] for scores in rewards.values()] for rewards in result.scores.values()],
    )
