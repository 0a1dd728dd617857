"""Which adapters a module's layers apply, and its teacher with guidance."""

from torch import Tensor

from rtdmd_lightning.modules.training import FewStepModule
from rtdmd_lightning.roles.stacked import StackedLinear
from rtdmd_lightning.sampling.structures import Conditioning


def active_adapters(module: FewStepModule) -> tuple[str, ...]:
    """The same in every layer."""
    (active,) = {m.selection.names for m in module.roles.modules() if isinstance(m, StackedLinear)}
    return active


def teacher_velocity(
    module: FewStepModule, latents: Tensor, sigma: float, conditioning: Conditioning, guidance_scale: float
) -> Tensor:
    """Guided away from the module's own empty prompt."""
    empty = module.embed([""], latents.device)
    return module.roles.teacher_velocity(latents, sigma, conditioning, empty, guidance_scale)
