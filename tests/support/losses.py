"""The losses of stage 1 at a boundary of a rollout, as one number."""

from torch import Tensor

from rtdmd_lightning.losses import total
from rtdmd_lightning.modules import ACDMDModule
from rtdmd_lightning.sampling.structures import Conditioning, Trajectory
from rtdmd_lightning.utils.randomness import SampleRandom


def fake_loss(
    module: ACDMDModule,
    trajectory: Trajectory,
    stop: int,
    conditioning: Conditioning,
    random: SampleRandom,
    number: int = 0,
) -> Tensor:
    """At the boundary that `stop` steps reach; `number` tells a cycle's updates apart."""
    return total(module.fake_score_loss(trajectory.step(stop - 1), conditioning, random, f"fake update {number}"))


def generator_loss(
    module: ACDMDModule,
    trajectory: Trajectory,
    stop: int,
    conditioning: Conditioning,
    random: SampleRandom,
    guidance_scale: float,
) -> Tensor:
    """The last executed step once more, with gradient, then the pull towards the teacher."""
    reached = module.last_step(trajectory, stop, conditioning, random)
    return total(module.matching_loss(reached, conditioning, random, guidance_scale))
