"""Held-out prompts, a reward of them, and an evaluation whose scores follow a script."""

import torch

from rtdmd_lightning.callbacks import RewardEvalCallback
from rtdmd_lightning.rewards.base import Reward

COUNT = 12  # two prompts of each of the six tags
PROMPTS = f"shapes:held_out:{COUNT // 6}"


class Length(Reward):
    """What is scored is the prompt, and its metadata is that prompt's."""

    name, differentiable = "length", False

    def score(self, images, prompts, metadata):
        assert prompts == [entry["prompt"] for entry in metadata]
        return torch.tensor([float(len(prompt)) for prompt in prompts])


class Scripted(RewardEvalCallback):
    """The trained rewards rise from evaluation to evaluation; the held-out one does as it is told."""

    length = {0: 10.0, 1: 12.0, 2: 6.0, 3: 9.0}

    def score_rewards(self, trainer, pl_module, metrics):
        for name, metric in metrics.items():
            metric.update(self.length[trainer.global_step] if "length" in name else trainer.global_step / 10)
