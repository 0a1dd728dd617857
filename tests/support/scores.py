"""Hand-made results: two entries and a baseline on four prompts, two rewards."""

from collections.abc import Mapping
from pathlib import Path

import torch

from rtdmd_lightning.evaluation.images import write_image
from rtdmd_lightning.evaluation.results import Results, SetResult

BACKBONE = {"class_path": "x.Backbone", "init_args": {"pretrained": "someone/model", "resolution": 512}}
SETTINGS = {"backbone": BACKBONE, "adapters": [], "steps": 4, "guidance_scale": 1.0, "eta": 0.9, "seed": 0}
SCORES = {
    "teacher": {"strict": [1.0, 0.0, 1.0, 0.0], "clip": [0.30, 0.20, 0.25, 0.25]},
    "cold | start": {"strict": [1.0, 0.0, 1.0, 0.0], "clip": [0.31, 0.21, 0.26, 0.26]},
    "<RTDMD>": {"strict": [1.0, 1.0, 0.0, 1.0], "clip": [0.10, 0.50, 0.24, 0.29]},
}
TAGS = ["colors", "colors", "counting", "counting"]
PROMPTS = ["a red square", 'a </script> & "blue" cross', "two circles", "three circles"]
REWARD_SETTINGS = {
    reward: {"class_path": f"x.{reward}", "init_args": {"weights": None}} for reward in ("strict", "clip")
}


def hand_made(
    baseline: str = "teacher",
    tags: bool = True,
    scores: Mapping[str, Mapping[str, list[float]]] = SCORES,
    rewards: Mapping[str, Mapping] = REWARD_SETTINGS,
    published: Mapping[str, Mapping[str, float]] = {},
) -> Results:
    """`scores` may have several images of every prompt; an entry with `published` scores is of the kind RTDMD."""
    metadata = [{"prompt": prompt} | ({"tag": tag} if tags else {}) for prompt, tag in zip(PROMPTS, TAGS, strict=True)]
    images = len(scores["teacher"]["clip"])
    files = {entry: [Path(f"images/{e}_{i}.png") for i in range(images)] for e, entry in enumerate(scores)}
    result = SetResult("prompts.jsonl", metadata, files, scores, rewards, published)
    settings = {entry: SETTINGS | {"published": "RTDMD" if entry in published else None} for entry in scores}
    return Results(settings, baseline, {"held-out": result})


def draw_files(results: Results, folder: Path, side: int = 16) -> None:
    """An image a file, each of a colour of its own: red tells the entry, green the prompt, blue which of its images."""
    for result in results.sets.values():
        for e, files in enumerate(result.files.values()):
            for i, file in enumerate(files):
                image = torch.zeros(3, side, side)
                image[0], image[1], image[2] = e / 3, i % 4 / 4, i // 4 / 4
                write_image(image, folder / file)
