"""How well `clipscore` on a CLIP folder tells the toy world's held-out prompts apart."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rtdmd_lightning.pretraining.clip_pairs import all_contents, draw, prompts_by_content, sample_neighbour
from rtdmd_lightning.rewards.clipscore import ClipScoreReward
from rtdmd_lightning.shapes.prompts import held_out_prompts, names_unseen_pair

CANDIDATES = 64
_CPU = torch.device("cpu")


def retrieval_report(folder: Path, *, per_tag: int = 100, rounds: int = 20, seed: int = 0) -> dict:
    """Held-out prompts, fresh pictures; every share is out of 1.

    `retrieval`: pictures whose best of `CANDIDATES` prompts of different contents is one that the scene fulfils.
    `right_over_wrong`, per tag: the score of the right prompt and picture against the same picture with a neighbouring prompt
    (`prompt`: share of wins) and against the same prompt with the neighbour's picture (`image`), and the two means.
    """
    reward = ClipScoreReward(weights=str(folder))
    reward.to(_CPU)
    rng = np.random.default_rng(seed)
    report: dict = {"retrieval": round(sum(_retrieved(reward, rng) for _ in range(rounds)) / rounds, 4)}
    metadata = held_out_prompts(per_tag, seed=seed)
    groups = {
        tag: [entry for entry in metadata if entry["tag"] == tag] for tag in dict.fromkeys(m["tag"] for m in metadata)
    }
    groups["unseen_pairs"] = [entry for entry in metadata if names_unseen_pair(entry)]
    report["right_over_wrong"] = {name: _right_over_wrong(reward, entries, rng) for name, entries in groups.items()}
    return report


def _retrieved(reward: ClipScoreReward, rng: np.random.Generator) -> float:
    chosen = rng.permutation(len(all_contents()))[:CANDIDATES]
    wordings = [prompts_by_content(held_out=True)[content] for content in chosen]
    pairs = draw([prompts[rng.integers(len(prompts))] for prompts in wordings], rng, allow_unseen=True)
    images = pairs.images / 255
    scores = torch.stack([_score(reward, images, [entry["prompt"]] * len(images)) for entry in pairs.metadata], dim=1)
    right = pairs.fulfils[:, pairs.content]
    return float(right.gather(1, scores.argmax(dim=1, keepdim=True)).float().mean())


def _right_over_wrong(reward: ClipScoreReward, metadata: list[dict], rng: np.random.Generator) -> dict[str, float]:
    pairs = draw(metadata, rng, allow_unseen=True)
    others = draw([sample_neighbour(entry, rng, held_out=True) for entry in metadata], rng, allow_unseen=True)
    numbers = torch.arange(len(metadata))
    differ = ~pairs.fulfils[numbers, others.content] & ~others.fulfils[numbers, pairs.content]
    prompts, wrong_prompts = ([entry["prompt"] for entry in part.metadata] for part in (pairs, others))
    images, wrong_images = pairs.images / 255, others.images / 255
    right = _score(reward, images, prompts)[differ]
    wrong_prompt = _score(reward, images, wrong_prompts)[differ]
    wrong_image = _score(reward, wrong_images, prompts)[differ]
    found = {
        "prompt": (right > wrong_prompt).float().mean(),
        "image": (right > wrong_image).float().mean(),
        "mean_right": right.mean(),
        "mean_wrong_prompt": wrong_prompt.mean(),
        "mean_wrong_image": wrong_image.mean(),
    }
    return {name: round(float(value), 4) for name, value in found.items()}


@torch.no_grad()
def _score(reward: ClipScoreReward, images: Tensor, prompts: list[str]) -> Tensor:
    return reward.score(images, prompts, [{} for _ in prompts])
