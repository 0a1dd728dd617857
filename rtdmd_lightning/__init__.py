"""RTDMD: few-step text-to-image generators, distilled and then reinforced. Its commands are modules, as `rtdmd_lightning.fit`.

As a library it has the names of `LIBRARY` (README.md, "As a library"): `from rtdmd_lightning import CPSScheduler, load_student`.

"METHOD section N" in docstrings and configs is section N of `method/README.md`: the equations, and what of them is the paper's.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rtdmd_lightning.utils.quiet import quiet_libraries

if TYPE_CHECKING:  # the names of LIBRARY, for those who check types
    from rtdmd_lightning.callbacks import ExportGenerator as ExportGenerator
    from rtdmd_lightning.callbacks import RewardEvalCallback as RewardEvalCallback
    from rtdmd_lightning.data import RolloutDataModule as RolloutDataModule
    from rtdmd_lightning.data.prompts import load_prompts as load_prompts
    from rtdmd_lightning.models import Flux2Backbone as Flux2Backbone
    from rtdmd_lightning.models import FluxBackbone as FluxBackbone
    from rtdmd_lightning.models import SD3Backbone as SD3Backbone
    from rtdmd_lightning.modules import ACDMDModule as ACDMDModule
    from rtdmd_lightning.modules import RTDMDModule as RTDMDModule
    from rtdmd_lightning.rewards.base import Reward as Reward
    from rtdmd_lightning.rewards.base import to_pil as to_pil
    from rtdmd_lightning.rewards.mixture import RewardMixture as RewardMixture
    from rtdmd_lightning.rewards.registry import reward_class as reward_class
    from rtdmd_lightning.roles.lora import LoraSettings as LoraSettings
    from rtdmd_lightning.roles.student import load_student as load_student
    from rtdmd_lightning.sampling.sampler import SamplerSettings as SamplerSettings
    from rtdmd_lightning.sampling.scheduler import CPSScheduler as CPSScheduler

LIBRARY = {
    "load_student": "roles.student",
    "CPSScheduler": "sampling.scheduler",
    "to_pil": "rewards.base",
    "load_prompts": "data.prompts",
    "RolloutDataModule": "data",
    "SD3Backbone": "models",
    "FluxBackbone": "models",
    "Flux2Backbone": "models",
    "ACDMDModule": "modules",
    "RTDMDModule": "modules",
    "LoraSettings": "roles.lora",
    "SamplerSettings": "sampling.sampler",
    "Reward": "rewards.base",
    "RewardMixture": "rewards.mixture",
    "reward_class": "rewards.registry",
    "ExportGenerator": "callbacks",
    "RewardEvalCallback": "callbacks",
}
"""What the package offers to Python code: each name, and the module that it is imported from."""

__all__ = list(LIBRARY)

quiet_libraries()


def __getattr__(name: str) -> Any:
    """Imported at its first use: diffusers takes seconds, and whoever wants any module here imports the package first."""
    if name in LIBRARY:
        return getattr(import_module(f"{__name__}.{LIBRARY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *LIBRARY]
