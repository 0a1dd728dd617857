"""Contrastive pairs of the toy world: every picture comes with one whose prompt differs in a single respect.

`a red circle and a blue square` stands beside `a blue circle and a red square`, `two crosses` beside `three crosses`. Without
such neighbours a batch hardly ever holds them, and a model that only counts colours and shapes would do.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from rtdmd_lightning.geneval.score import Detection, geneval_score
from rtdmd_lightning.geneval.vocabulary import TAGS
from rtdmd_lightning.shapes.dataset import sample_metadata
from rtdmd_lightning.shapes.prompts import contents, is_held_out, prompts
from rtdmd_lightning.shapes.render import render_batch
from rtdmd_lightning.shapes.world import Scene, sample_scene


@dataclass(frozen=True)
class Pairs:
    """N pictures and prompts, numbers 2k and 2k+1 being neighbours.

    Args:
        images: `[N, 3, 32, 32]` uint8.
        metadata: N prompts with their GenEval metadata.
        content: `[N]`, the number in `all_contents()` of what each prompt asks for.
        fulfils: `[N, contents]` bool: which contents each picture fulfils, by the scene that was drawn.
    """

    images: Tensor
    metadata: list[dict]
    content: Tensor
    fulfils: Tensor


@cache
def all_contents() -> list[dict]:
    """Everything the world's prompts can ask for, whatever their adjective and medium."""
    return [content for tag in TAGS for content in contents(tag)]


def content_of(metadata: dict) -> int:
    """The number in `all_contents()` of what a prompt asks for."""
    return _content_numbers()[metadata["prompt"].partition(" of ")[2]]


@cache
def prompts_by_content(held_out: bool) -> list[list[dict]]:
    """For every content its training (or held-out) prompts; none for what training never shows."""
    wordings: list[list[dict]] = [[] for _ in all_contents()]
    for tag in TAGS:
        for metadata in prompts(tag):
            if is_held_out(metadata) == held_out:
                wordings[content_of(metadata)].append(metadata)
    return wordings


def neighbours(content: int) -> list[int]:
    """Contents of the same tag whose text has one word changed, or two swapped."""
    return _neighbours()[content]


def sample_pairs(count: int, *, seed: int) -> Pairs:
    """`count` (even) training pairs, the same ones for a seed; unseen colour-shape pairs are neither shown nor named."""
    rng = np.random.default_rng(seed)
    first = sample_metadata(rng, count // 2)
    metadata = [entry for one in first for entry in (one, sample_neighbour(one, rng, held_out=False))]
    return draw(metadata, rng, allow_unseen=False)


def sample_neighbour(metadata: dict, rng: np.random.Generator, *, held_out: bool) -> dict:
    """A random training (or held-out) prompt of a random neighbouring content."""
    choices = [found for other in neighbours(content_of(metadata)) if (found := prompts_by_content(held_out)[other])]
    wordings = choices[rng.integers(len(choices))]
    return wordings[rng.integers(len(wordings))]


def draw(metadata: list[dict], rng: np.random.Generator, *, allow_unseen: bool) -> Pairs:
    """One picture of each prompt."""
    scenes = [sample_scene(entry, rng, allow_unseen=allow_unseen) for entry in metadata]
    return Pairs(
        images=(render_batch(scenes) * 255).round().to(torch.uint8),
        metadata=metadata,
        content=torch.tensor([content_of(entry) for entry in metadata]),
        fulfils=torch.tensor([fulfilled(scene) for scene in scenes]),
    )


def fulfilled(scene: Scene) -> list[bool]:
    """For every content: does the scene fulfil it, strictly? `a red circle` fulfils `a circle` too."""
    seen = [Detection(placed.shape, placed.color, placed.box, 1.0) for placed in scene.objects]
    return [geneval_score(seen, content).strict for content in all_contents()]


@cache
def _content_numbers() -> dict[str, int]:
    return {content["prompt"]: number for number, content in enumerate(all_contents())}


@cache
def _neighbours() -> list[list[int]]:
    numbered = list(enumerate(all_contents()))
    return [[number for number, other in numbered if _one_change(content, other)] for content in all_contents()]


def _one_change(content: dict, other: dict) -> bool:
    """One word replaced, or two words swapped, and not the same things in another order."""
    if content["tag"] != other["tag"] or sorted(map(repr, content["include"])) == sorted(map(repr, other["include"])):
        return False
    words, others = (
        entry["prompt"].replace(" of", "").split() for entry in (content, other)
    )  # left of, above: a word each
    differing = [(a, b) for a, b in zip(words, others, strict=True) if a != b]
    return len(differing) == 1 or (len(differing) == 2 and differing[0] == differing[1][::-1])
