"""What came out: every score of every image, as `results.json` holds it and as the tables and the report read it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtdmd_lightning.files import write_text


@dataclass(frozen=True)
class SetResult:
    """One prompt set: N prompts, their images of every entry and the scores of these.

    source: what the prompts were loaded from.
    metadata: of the N prompts.
    files: N image files by entry, relative to the folder of the evaluation.
    scores: N scores by entry and reward.
    """

    source: str
    metadata: list[dict[str, Any]]
    files: dict[str, list[Path]]
    scores: dict[str, dict[str, list[float]]]

    @property
    def rewards(self) -> list[str]:
        return list(next(iter(self.scores.values())))

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
    """`results.json`: the settings, and under each set a list with an object an image."""
    document = {
        "entries": results.entries,
        "baseline": results.baseline,
        "sets": {
            name: {"source": result.source, "rewards": result.rewards, "images": _image_rows(result)}
            for name, result in results.sets.items()
        },
    }
    write_text(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n", path)


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
        for index, metadata in enumerate(result.metadata)
    ]
