"""Terms of the losses: each an object that is given roles and a sampler, and gives named scalars with their weights."""

from rtdmd_lightning.losses.final_step import FinalStepLoss
from rtdmd_lightning.losses.matching import FakeScoreLoss, MatchingLoss
from rtdmd_lightning.losses.policy import PolicyLoss
from rtdmd_lightning.losses.reward_backprop import RewardBackprop
from rtdmd_lightning.losses.settings import (
    Consistency,
    FinalStepSettings,
    MatchingSettings,
    PolicySettings,
    RenoiseSettings,
)
from rtdmd_lightning.losses.terms import Term, Terms, total

__all__ = [
    "Consistency",
    "FakeScoreLoss",
    "FinalStepLoss",
    "FinalStepSettings",
    "MatchingLoss",
    "MatchingSettings",
    "PolicyLoss",
    "PolicySettings",
    "RenoiseSettings",
    "RewardBackprop",
    "Term",
    "Terms",
    "total",
]
