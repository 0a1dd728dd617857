"""The paper's own figures, `facts/published.json`: a row beside ours where model and prompts are the same."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FACTS = json.loads((Path(__file__).parent / "facts" / "published.json").read_text(encoding="utf-8"))
NOTE = f"paper: {FACTS['source']}, {FACTS['resolution']}"


@dataclass(frozen=True)
class PublishedRow:
    """What is published of one model on one prompt set (METHOD section 7).

    base: the hub id that the teacher starts from.
    kind: what was drawn with, the `teacher` itself or its `RTDMD` student.
    nfe: forward passes for an image.
    prompt_set: its name in `configs/parts/benchmarks.yaml`.
    scores: the means by reward, named and scaled as our tables have them (METHOD section 6; pickscore x 26).
    """

    base: str
    kind: str
    nfe: int
    prompt_set: str
    scores: dict[str, float]


ROWS = [PublishedRow(**row) for row in FACTS["rows"]]
KINDS = sorted({row.kind for row in ROWS})


def published_scores(
    settings: dict[str, Any], prompt_set: str, prompts: int, rewards: Collection[str]
) -> dict[str, float]:
    """An entry's published scores on a prompt set, of those rewards that have one; empty where there are none.

    `settings` are the entry's, as they stand in the config. They say of which published kind the entry is, and its base must be
    the published one. A prompt set is the published one where its name and its number of prompts are.
    """
    if settings["published"] is None or FACTS["prompts"].get(prompt_set) != prompts:
        return {}
    wanted = (settings["backbone"]["init_args"]["pretrained"], settings["published"], prompt_set)
    found = next((row.scores for row in ROWS if (row.base, row.kind, row.prompt_set) == wanted), {})
    return {reward: score for reward, score in found.items() if reward in rewards}
