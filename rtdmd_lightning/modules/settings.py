"""The groups of options that the modules take, as they appear in a config."""

import math
from dataclasses import dataclass, field
from typing import Literal

from rtdmd_lightning.sampling.rollout import check_eta, check_steps
from rtdmd_lightning.utils.errors import require


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW's numbers, and the gradient norm that is clipped to.

    decay_steps: over the run's last so many generator updates the learning rate falls linearly to zero; 0 keeps it constant.
    """

    learning_rate: float = 3e-5
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    eps: float = 1e-8
    max_grad_norm: float = 1.0
    decay_steps: int = 0

    def __post_init__(self) -> None:
        where = "model.generator_optimizer or model.fake_optimizer: "
        _check_not_negative(
            where,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            eps=self.eps,
            decay_steps=self.decay_steps,
        )
        _check_positive(where, max_grad_norm=self.max_grad_norm)
        require(all(0 <= beta < 1 for beta in self.betas), f"{where}betas must lie in [0, 1), not {list(self.betas)}")

    def learning_rate_at(self, step: int, max_steps: int) -> float:
        """The rate of generator update `step` of `max_steps` (counted from 0)."""
        if not self.decay_steps or max_steps < 0:  # Lightning's max_steps -1: a run without an end has no last steps
            return self.learning_rate
        return self.learning_rate * min(1.0, (max_steps - step) / self.decay_steps)


@dataclass(frozen=True)
class EMASettings:
    """The generator's average, `ema <- decay·ema + (1 - decay)·generator` (METHOD sections 3.4 and 4, item 6).

    decay: of one move.
    moves: how many moves a training step offers: all but the last before the generator's update, the last one after it. By
        default as the authors count: one per fake-score update in stage 1, one per micro-batch in stage 2.
    every: the average moves only while the number of generator updates done, plus one, is a multiple of this.
    warm_up: after n generator updates the decay is at most `(1 + n)/(10 + n)`.
    """

    decay: float = 0.99
    moves: int | None = None
    every: int = 1
    warm_up: bool = False

    def __post_init__(self) -> None:
        require(0 <= self.decay < 1, f"model.ema.decay must lie in [0, 1), not {self.decay}")
        require(self.moves is None or self.moves >= 1, f"model.ema.moves must be at least 1, not {self.moves}")
        require(self.every >= 1, f"model.ema.every must be at least 1, not {self.every}")

    def kept(self, moves: int, updates: int) -> float:
        """The share of the old average that is left after some moves, when `updates` generator updates are done."""
        if (updates + 1) % self.every:
            return 1.0
        decay = min(self.decay, (1 + updates) / (10 + updates)) if self.warm_up else self.decay
        return decay**moves


@dataclass(frozen=True)
class SamplerSettings:
    """The few-step sampler: raw timesteps (shifted by the backbone's own schedule) and the CPS stochasticity.

    eta: of the rollouts that are trained on.
    draw_eta: of the images that are evaluated, and what a model card recommends; by default eta too, as METHOD has it.
    """

    steps: list[int] = field(default_factory=lambda: [1000, 750, 500, 250])
    eta: float = 0.9
    draw_eta: float | None = None

    def __post_init__(self) -> None:
        check_steps(self.steps, "model.sampler.steps")
        check_eta(self.eta, "model.sampler.eta")
        if self.draw_eta is not None:
            check_eta(self.draw_eta, "model.sampler.draw_eta")

    @property
    def eta_of_images(self) -> float:
        return self.eta if self.draw_eta is None else self.draw_eta


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

    def __post_init__(self) -> None:
        _check_not_negative("model.consistency.", weight=self.weight)
        _check_positive("model.consistency.", moves=self.moves)
        require(
            1 <= self.max_delta <= 1000,
            f"model.consistency.max_delta must lie between 1 and 1000 timesteps, not {self.max_delta}",
        )


@dataclass(frozen=True)
class RenoiseSettings:
    """How the level t that samples are renoised to is drawn, for each of the two losses.

    `interval`: uniform between the samples' own level and 1 (METHOD section 3.1). `uniform` and `logit_normal`: over the
    scheduler's training table (METHOD section 5.1); DMD2's, for samples that are renoised from level 0.
    """

    fake_score: Literal["interval", "uniform", "logit_normal"] = "interval"
    generator: Literal["interval", "uniform", "logit_normal"] = "interval"


@dataclass(frozen=True)
class PolicySettings:
    """SubGRPO on the stochastic steps (METHOD section 4, items 2, 3 and 5).

    weight: of the policy loss; 0 trains by back-propagation through the last step alone, without these steps' passes.
    trained_steps: how many of the stochastic steps are trained per epoch, chosen at random; all of them is plain GRPO.
    steps: which ones may be chosen, by their numbers from 0; by default every stochastic one.
    shared_noise: a stochastic step that is not chosen gives a whole prompt group the same noise.
    clip_range: of the probability ratio. It is tuned to `cps_log_prob`'s scale.
    advantage_clip: advantages beyond are cut.
    global_std: divide a reward by its std over the epoch; without it, over the prompt group.
    exact_log_prob: the Gaussian log density in place of METHOD's `-mean squared error` (the clip range then needs care).
    kl_weight: pull of each trained step towards the stage-1 generator; 0 saves its passes.
    """

    weight: float = 1.0
    trained_steps: int = 2
    steps: list[int] | None = None
    shared_noise: bool = True
    clip_range: float = 1e-5
    advantage_clip: float = 5.0
    global_std: bool = True
    exact_log_prob: bool = False
    kl_weight: float = 0.0

    def __post_init__(self) -> None:
        _check_not_negative(
            "model.policy.", weight=self.weight, trained_steps=self.trained_steps, kl_weight=self.kl_weight
        )
        _check_positive("model.policy.", clip_range=self.clip_range, advantage_clip=self.advantage_clip)


@dataclass(frozen=True)
class FinalStepSettings:
    """The last, deterministic step, through which gradients pass (METHOD section 4, item 5).

    matching_weight: of AC-DMD's generator loss; 0 saves the teacher's passes and the fake score's training with them.
    reward_weight: of `relu(reward_ceiling - Σ_i w_i·r_i)` over the differentiable rewards; 0 saves its decoding.
    reward_ceiling: samples whose weighted rewards exceed it are left in peace.
    decode_chunk: images decoded and scored with gradient at once; each chunk is recomputed in the backward pass.
    """

    matching_weight: float = 1e-3
    reward_weight: float = 1e-4
    reward_ceiling: float = 3.0
    decode_chunk: int = 4

    def __post_init__(self) -> None:
        where = "model.final_step."
        _check_not_negative(where, matching_weight=self.matching_weight, reward_weight=self.reward_weight)
        _check_positive(where, decode_chunk=self.decode_chunk)
        require(
            math.isfinite(self.reward_ceiling),
            f"{where}reward_ceiling must be a finite number, not {self.reward_ceiling}",
        )

    @property
    def is_trained(self) -> bool:
        """Whether anything is back-propagated through the step."""
        return self.matching_weight > 0 or self.reward_weight > 0


def _check_not_negative(where: str, **values: float) -> None:
    for name, value in values.items():
        require(0 <= value < math.inf, f"{where}{name} must be a number from 0 up, not {value}")


def _check_positive(where: str, **values: float) -> None:
    for name, value in values.items():
        require(0 < value < math.inf, f"{where}{name} must be above 0, not {value}")
