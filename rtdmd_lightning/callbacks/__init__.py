"""Lightning callbacks."""

from rtdmd_lightning.callbacks.alarm import RewardHackingAlarm
from rtdmd_lightning.callbacks.export import ExportGenerator
from rtdmd_lightning.callbacks.reward_eval import RewardEvalCallback

__all__ = ["ExportGenerator", "RewardEvalCallback", "RewardHackingAlarm"]
