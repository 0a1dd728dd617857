"""Lightning callbacks."""

from rtdmd_lightning.callbacks.alarm import RewardHackingAlarm
from rtdmd_lightning.callbacks.export import ExportGenerator
from rtdmd_lightning.callbacks.interruption import Interruption
from rtdmd_lightning.callbacks.progress import TrainingProgress
from rtdmd_lightning.callbacks.reward_eval import RewardEvalCallback
from rtdmd_lightning.callbacks.summary import Summary

__all__ = ["ExportGenerator", "Interruption", "RewardEvalCallback", "RewardHackingAlarm", "Summary", "TrainingProgress"]
