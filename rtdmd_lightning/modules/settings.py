"""The groups of options that the modules take, as they appear in a config."""

from dataclasses import dataclass, field
from typing import Literal

from rtdmd_lightning.errors import UserError


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW's numbers, and the gradient norm that is clipped to."""

    learning_rate: float = 3e-5
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    eps: float = 1e-8
    max_grad_norm: float = 1.0


@dataclass(frozen=True)
class SamplerSettings:
    """The few-step sampler: raw timesteps (shifted by the backbone's own schedule) and the CPS stochasticity."""

    steps: list[int] = field(default_factory=lambda: [1000, 750, 500, 250])
    eta: float = 0.9

    def __post_init__(self) -> None:
        if not self.steps or sorted(set(self.steps), reverse=True) != self.steps or not 0 < self.steps[-1] <= 1000:
            raise UserError(
                f"model.sampler.steps must fall strictly from at most 1000 and stay above 0, not {self.steps}"
            )
        if not 0 <= self.eta <= 1:
            raise UserError(f"model.sampler.eta must lie in [0, 1], not {self.eta}")


@dataclass(frozen=True)
class Consistency:
    """The consistency regulariser of the fake score (METHOD section 3.2).

    weight: of `L_cons` in the fake-score loss; 0 switches it off, with its forward passes.
    samples: 2 is the unbiased estimator from two independent transitions, 1 the mean squared error of one.
    moves: chained transitions from t down to t'.
    transition: `cps` with the sampler's eta (the paper's), or `posterior`, exact in the mean.
    max_delta: the largest move, in timesteps of 1000.
    """

    weight: float = 0.01
    samples: Literal[1, 2] = 2
    moves: int = 1
    transition: Literal["cps", "posterior"] = "cps"
    max_delta: int = 200
