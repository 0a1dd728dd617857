"""Rewards without their weights, for tracing: what of them lies on the device, and what back-propagates to the pixels."""

from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from rtdmd_lightning.planning.blocks import Kind, kinds, thin
from rtdmd_lightning.planning.parts import companion, materialise, parameter_bytes
from rtdmd_lightning.rewards.base import Reward
from rtdmd_lightning.rewards.clip_models import ClipLogitReward
from rtdmd_lightning.rewards.mixture import RewardMixture
from rtdmd_lightning.rewards.preprocess import centre_crop, resize_shorter_side
from rtdmd_lightning.utils.errors import UserError

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

LAYERS = (CLIPEncoderLayer,)


class StandIn(Reward):
    """A reward's CLIP of fake tensors, and a score that depends on its image embedding."""

    def __init__(self, reward: Reward, blocks: Counter[Kind]) -> None:
        self.name, self.differentiable = reward.name, reward.differentiable
        self.tower: CLIPModel | None = None
        if reward.name in TOWERS:
            clip = _clip(reward)
            thin(clip.vision_model.encoder, LAYERS, blocks)
            self.tower = materialise(clip, torch.float32)

    def networks(self) -> list[nn.Module]:
        return [self.tower] if self.tower is not None else []

    def bytes(self) -> int:
        return OTHERS[self.name] if self.tower is None else parameter_bytes(self.tower.parameters())

    def score(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        if self.tower is None:
            return torch.zeros(len(images))
        side = self.tower.config.vision_config.image_size
        with torch.autocast(images.device.type, enabled=False):
            pixels = centre_crop(resize_shorter_side(images, side), side)
            return self.tower.get_image_features(pixel_values=pixels).pooler_output.mean(dim=-1)


def tower_kinds(rewards: RewardMixture) -> Counter[Kind]:
    """How many layers their towers have, by kind; towers of a kind have equally many. Raises UserError for an unknown reward."""
    found: Counter[Kind] = Counter()
    for name, reward in rewards.rewards.items():
        if name in TOWERS:
            found |= kinds(_clip(reward).vision_model.encoder, LAYERS)
        elif name not in OTHERS:
            raise _unknown(name)
    return found


def reward_bytes(reward: Reward) -> int:
    """Of a reward's networks. Raises UserError for an unknown one."""
    if reward.name in TOWERS:
        return parameter_bytes(_clip(reward).parameters())
    if reward.name in OTHERS:
        return OTHERS[reward.name]
    raise _unknown(reward.name)


def _unknown(name: str) -> UserError:
    return UserError(f"nothing is known of the size of the reward {name!r}: plan without it")


def stand_ins(rewards: RewardMixture, blocks: Counter[Kind]) -> RewardMixture:
    """The mixture without weights, its towers with these layers; call it in the fake mode."""
    towers: list[Reward] = [StandIn(reward, blocks) for reward in rewards.rewards.values()]
    return RewardMixture(towers, rewards.weights, rewards.differentiable)


def _clip(reward: Reward) -> CLIPModel:
    """On the meta device, from the user's own folder of weights where there is one."""
    if isinstance(reward, ClipLogitReward) and reward.weights is not None and Path(reward.weights).is_dir():
        with torch.device("meta"):
            return CLIPModel(CLIPConfig.from_pretrained(reward.weights))
    tower = companion(TOWERS[reward.name]).build()
    assert isinstance(tower, CLIPModel)
    return tower
