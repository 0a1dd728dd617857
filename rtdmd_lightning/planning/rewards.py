"""Rewards without their weights, for tracing: what of them lies on the device, and what back-propagates to the pixels."""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from rtdmd_lightning.planning.parts import companion, materialise, parameter_bytes
from rtdmd_lightning.rewards.base import Reward
from rtdmd_lightning.rewards.clip_models import ClipLogitReward
from rtdmd_lightning.rewards.mixture import RewardMixture
from rtdmd_lightning.rewards.precision import in_precision
from rtdmd_lightning.rewards.preprocess import centre_crop, resize_shorter_side
from rtdmd_lightning.utils.errors import require

TOWERS = {
    "clipscore": "tower_l",
    "aesthetic": "tower_l",
    "imagereward": "tower_l",
    "pickscore": "tower_h",
    "hpsv2": "tower_h",
}
"""The CLIP that a reward is, as a fact of `facts/companions.json`; for ImageReward's BLIP, of the same size, an estimate."""

OTHERS = {
    "geneval": 4 * (69_000_000 + 428_000_000),  # Mask2Former Swin-S and CLIP ViT-L/14, float32; estimated
    "geneval2": 2 * 8_770_000_000,  # Qwen3-VL-8B, bfloat16; estimated
    "hpsv3": 2 * 8_300_000_000,  # Qwen2-VL-7B, bfloat16; estimated
    "ocr": 0,  # on the CPU
    "shapes": 0,
}
"""Bytes of the rewards that have no gradient. Their own scoring passes are not traced."""


class StandIn(Reward):
    """A reward's CLIP of fake tensors, and a score that depends on its image embedding."""

    def __init__(self, reward: Reward) -> None:
        self.name, self.differentiable, self.dtype = reward.name, reward.differentiable, reward.dtype
        check_known(reward)
        self.tower: CLIPModel | None = None
        if reward.name in TOWERS:
            self.tower = materialise(_clip(reward), _dtype(reward))

    def networks(self) -> list[nn.Module]:
        return [self.tower] if self.tower is not None else []

    def bytes(self) -> int:
        return OTHERS[self.name] if self.tower is None else parameter_bytes(self.tower.parameters())

    def score(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        tower = self.tower
        if tower is None:
            return torch.zeros(len(images))
        side = tower.config.vision_config.image_size
        with torch.autocast(images.device.type, enabled=False):
            pixels = centre_crop(resize_shorter_side(images, side), side)
            features = in_precision(
                lambda x: tower.get_image_features(pixel_values=x).pooler_output, pixels, _dtype(self)
            )
            return features.mean(dim=-1)


def check_known(reward: Reward) -> None:
    """Raises UserError for a reward whose size is not known."""
    require(
        reward.name in TOWERS or reward.name in OTHERS,
        f"nothing is known of the size of the reward {reward.name!r}: plan without it",
    )


def reward_bytes(reward: Reward) -> int:
    """Of a reward's networks. Raises UserError for an unknown one."""
    check_known(reward)
    return parameter_bytes(_clip(reward).parameters(), _dtype(reward)) if reward.name in TOWERS else OTHERS[reward.name]


def stand_ins(rewards: RewardMixture) -> RewardMixture:
    """The mixture without weights; call it in the fake mode. Raises UserError for an unknown reward."""
    towers: list[Reward] = [StandIn(reward) for reward in rewards.rewards.values()]
    return RewardMixture(towers, rewards.weights, rewards.differentiable)


def _dtype(reward: Reward) -> torch.dtype:
    """Of its CLIP."""
    return torch.float32 if reward.dtype is None else reward.dtype


def _clip(reward: Reward) -> CLIPModel:
    """On the meta device, from the user's own folder of weights where there is one."""
    if isinstance(reward, ClipLogitReward) and reward.weights is not None and Path(reward.weights).is_dir():
        with torch.device("meta"):
            return CLIPModel(CLIPConfig.from_pretrained(reward.weights))
    tower = companion(TOWERS[reward.name]).build()
    assert isinstance(tower, CLIPModel)
    return tower
