"""What came out: every score of every image, as `results.json` holds it and as the tables and the report read it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtdmd_lightning.evaluation.statistics import per_prompt
from rtdmd_lightning.utils.files import write_text


@dataclass(frozen=True)
class SetResult:
    """One prompt set: N prompts, K images of each by every entry, and the scores of these.

    source: what the prompts were loaded from.
    metadata: of the N prompts.
    files: N·K image files by entry, relative to the folder of the evaluation: the prompts' first images, then their second.
    scores: N·K scores by entry and reward, likewise.
    reward_settings: the rewards by name, as they stand in the config.
    published: the published scores by entry and reward, of the entries and rewards that have some.
    """

    source: str
    metadata: list[dict[str, Any]]
    files: dict[str, list[Path]]
    scores: dict[str, dict[str, list[float]]]
    reward_settings: dict[str, Mapping[str, Any]]
    published: dict[str, dict[str, float]]

    @property
    def rewards(self) -> list[str]:
        return list(next(iter(self.scores.values())))

    @property
    def images_per_prompt(self) -> int:
        return len(next(iter(self.files.values()))) // len(self.metadata)

    @property
    def size(self) -> str:
        """For titles."""
        each = f", {self.images_per_prompt} images each" if self.images_per_prompt > 1 else ""
        return f"{len(self.metadata)} prompts{each}"

    def prompt_scores(self, entry: str) -> dict[str, list[float]]:
        """N scores by reward: the means over a prompt's images."""
        return {reward: per_prompt(scores, len(self.metadata)) for reward, scores in self.scores[entry].items()}

    @property
    def tags(self) -> list[str] | None:
        """The prompts' tags, where all have one."""
        if not all("tag" in entry for entry in self.metadata):
            return None
        return [entry["tag"] for entry in self.metadata]


@dataclass(frozen=True)
class Results:
    """An evaluation's results.

    entries: name to settings, as in the config.
    baseline: the entry that the others are compared with.
    sets: by the names of the prompt sets.
    """

    entries: dict[str, Mapping[str, Any]]
    baseline: str
    sets: dict[str, SetResult]

    @property
    def challengers(self) -> list[str]:
        """All entries but the baseline."""
        return [entry for entry in self.entries if entry != self.baseline]


def write_results(results: Results, path: Path) -> None:
    """`results.json`: the settings, and under each set a list with an object an image.

    The image r of prompt p, both counted from 0, has the index p + r·N.
    """
    document = {
        "entries": results.entries,
        "baseline": results.baseline,
        "sets": {
            name: {
                "source": result.source,
                "prompts": len(result.metadata),
                "images_per_prompt": result.images_per_prompt,
                "rewards": result.reward_settings,
                "published": result.published,
                "images": _image_rows(result),
            }
            for name, result in results.sets.items()
        },
    }
    # `str` is for the paths among the rewards' options.
    write_text(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n", path)


def _image_rows(result: SetResult) -> list[dict[str, Any]]:
    return [
        {
            "entry": entry,
            "index": index,
            "prompt": metadata["prompt"],
            **({"tag": metadata["tag"]} if "tag" in metadata else {}),
            "file": result.files[entry][index].as_posix(),
            "scores": {reward: scores[index] for reward, scores in result.scores[entry].items()},
        }
        for entry in result.scores
        for index, metadata in enumerate(result.metadata * result.images_per_prompt)
    ]
