"""The rewards by their fixed names. Import paths, so that asking for one does not import the packages of all."""

import inspect

from rtdmd_lightning.rewards.base import Reward
from rtdmd_lightning.utils.errors import UserError, require
from rtdmd_lightning.utils.own_code import import_module

REWARDS = {
    "aesthetic": "rtdmd_lightning.rewards.aesthetic.AestheticReward",
    "clipscore": "rtdmd_lightning.rewards.clipscore.ClipScoreReward",
    "geneval": "rtdmd_lightning.rewards.geneval.GenEvalReward",
    "geneval2": "rtdmd_lightning.rewards.geneval2.GenEval2Reward",
    "hpsv2": "rtdmd_lightning.rewards.hpsv2.HPSv2Reward",
    "hpsv3": "rtdmd_lightning.rewards.hpsv3.HPSv3Reward",
    "imagereward": "rtdmd_lightning.rewards.imagereward.ImageRewardReward",
    "ocr": "rtdmd_lightning.rewards.ocr.OCRReward",
    "pickscore": "rtdmd_lightning.rewards.pickscore.PickScoreReward",
    "shapes": "rtdmd_lightning.rewards.shapes.ShapesReward",
}


def reward_class(name: str) -> type[Reward]:
    """The class of a fixed name, or of a class path (`package.module.Class`) to a reward of one's own.

    Raises UserError where there is none.
    """
    path = REWARDS.get(name, name)
    module, _, attribute = path.rpartition(".")
    if not module:
        raise UserError(f"there is no reward {name!r}; known are {', '.join(REWARDS)}, or give a class path")
    try:
        found = getattr(import_module(module), attribute)
    except AttributeError as error:
        raise UserError(f"the reward {name!r} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Reward)):
        raise UserError(f"{path} is not a subclass of rtdmd_lightning.rewards.base.Reward")
    require(not inspect.isabstract(found), f"{path} is abstract: it wants the methods {_named(found)}")
    return found


def _named(abstract: type) -> str:
    return ", ".join(sorted(abstract.__abstractmethods__))  # type: ignore[attr-defined]


def check_reward(reward: Reward) -> None:
    """Raises UserError for a reward of one's own without a `name`, which tables and weights know it by, or `differentiable`."""
    kind = type(reward).__name__
    try:
        name, differentiable = reward.name, reward.differentiable
    except AttributeError as error:
        raise UserError(f"the class {kind} wants a name and differentiable: {error}") from error
    require(isinstance(name, str) and name != "", f"{kind}.name must be a text, not {name!r}")
    require(isinstance(differentiable, bool), f"{kind}.differentiable must be True or False, not {differentiable!r}")
