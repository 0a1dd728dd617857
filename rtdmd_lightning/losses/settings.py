"""The options of the losses, as they appear in a config."""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from rtdmd_lightning.utils.errors import check_not_negative, check_positive, require
from rtdmd_lightning.utils.randomness import keyed_generator


@dataclass(frozen=True)
class Consistency:
    """The consistency regulariser of the fake score (METHOD section 3.2).

    Args:
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
        check_not_negative("model.consistency.", weight=self.weight)
        check_positive("model.consistency.", moves=self.moves)
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
class MatchingSettings:
    """AC-DMD's two losses (METHOD section 3).

    Args:
        guidance_scale: the teacher's range; one value is drawn per generator update, the same on all ranks.
        sub_interval: renoise from the level where the rollout stopped; without it, from the clean prediction.
        consistency: the fake score's regulariser.
        fake_target: `ambient` (the paper's) or `rao_blackwell` (same conditional mean, smaller variance).
        fake_weight: of the fake score's loss: `clamped` (the paper's), or `unit` (DMD2's).
        renoise: how the levels that samples are renoised to are drawn.
        normalizer: of the generator's gradient: `paper`, or `noise_free` (only the clean predictions enter).
    """

    guidance_scale: tuple[float, float]
    sub_interval: bool = True
    consistency: Consistency = Consistency()
    fake_target: Literal["ambient", "rao_blackwell"] = "ambient"
    fake_weight: Literal["clamped", "unit"] = "clamped"
    renoise: RenoiseSettings = RenoiseSettings()
    normalizer: Literal["paper", "noise_free"] = "paper"

    def __post_init__(self) -> None:
        low, high = self.guidance_scale
        require(
            1 <= low <= high,
            f"model.guidance_scale must be a range of scales from 1 up, not {list(self.guidance_scale)}",
        )
        require(
            not self.sub_interval or self.renoise == RenoiseSettings(),
            "model.renoise: only `interval` draws levels above the one where a rollout stopped; set model.sub_interval to "
            "false for the others",
        )

    def draw_guidance(self, seed: int, update: int) -> float:
        """The teacher's scale of a generator update: a function of (seed, update), so the same on all ranks."""
        low, high = self.guidance_scale
        return low + (high - low) * float(torch.rand((), generator=keyed_generator(seed, update, "guidance")))


OldLogProb = Literal["auto", "rollout", "update"]
RatioCheck = Literal["stop", "warn", "off"]


@dataclass(frozen=True)
class PolicySettings:
    """SubGRPO on the stochastic steps (METHOD section 4, items 2, 3 and 5).

    The clip range is 1e-5, so the probability ratio of a first update must be 1 to better than that. It is where the rollout's
    log-probabilities and the update's come from the same kernels on the same batches. It is not where kernels differ between
    passes with and without gradient (compiled blocks: 3e-5 on an H100), or where `shuffle` makes other batches of the samples.

    Args:
        weight: of the policy loss; 0 trains by back-propagation through the last step alone, without these steps' passes.
        trained_steps: how many of the stochastic steps are trained per epoch, chosen at random; all of them is plain GRPO.
        steps: which ones may be chosen, by their numbers from 0; by default every stochastic one.
        shared_noise: a stochastic step that is not chosen gives a whole prompt group the same noise.
        clip_range: of the probability ratio. It is tuned to `cps_log_prob`'s scale.
        advantage_clip: advantages beyond are cut.
        global_std: divide a reward by its std over the epoch; without it, over the prompt group.
        exact_log_prob: the Gaussian log density in place of METHOD's `-mean squared error` (the clip range then needs care).
        kl_weight: pull of each trained step towards the stage-1 generator; 0 saves its passes.
        old_log_prob: which log-probabilities the ratio is taken to. `rollout`: those of the rollout. `update`: those that the
            first update on the rollouts computes itself, under the same weights, so that its ratio is 1 whatever the kernels; it
            costs nothing. `auto`: `update` with compiled blocks, `rollout` without.
        ratio_check: what happens when on the first generator update of a run, or after it was resumed, a ratio to the rollout's
            log-probabilities is off 1 by more than the clip range: `stop` the run, `warn`, or nothing (`off`). With `update` it
            is 1.
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
    old_log_prob: OldLogProb = "auto"
    ratio_check: RatioCheck = "stop"

    def __post_init__(self) -> None:
        check_not_negative(
            "model.policy.", weight=self.weight, trained_steps=self.trained_steps, kl_weight=self.kl_weight
        )
        check_positive("model.policy.", clip_range=self.clip_range, advantage_clip=self.advantage_clip)

    def from_update(self, is_compiled: bool) -> bool:
        """Whether the old log-probabilities are the update's own."""
        return self.old_log_prob == "update" or (self.old_log_prob == "auto" and is_compiled)

    def candidates(self, steps: int) -> list[int]:
        """The steps that may be chosen, of a sampler with so many; the last one is deterministic. Raises UserError."""
        stochastic = range(steps - 1)
        chosen = list(stochastic) if self.steps is None else sorted(self.steps)
        require(
            len(set(chosen)) == len(chosen) and set(chosen) <= set(stochastic),
            f"model.policy.steps must be different ones of the stochastic steps {list(stochastic)}, not {self.steps}",
        )
        return chosen

    def choose(self, seed: int, epoch: int, steps: int) -> list[int]:
        """The stochastic steps that an epoch trains: a function of (seed, epoch), so the same on all ranks."""
        if not self.weight:
            return []
        candidates = self.candidates(steps)
        order = torch.randperm(len(candidates), generator=keyed_generator(seed, epoch, "steps"))
        return sorted(candidates[number] for number in order[: self.trained_steps].tolist())


@dataclass(frozen=True)
class FinalStepSettings:
    """The last, deterministic step, through which gradients pass (METHOD section 4, item 5).

    Args:
        matching_weight: of AC-DMD's generator loss; 0 saves the teacher's passes and the fake score's training with them.
        reward_weight: of `relu(reward_ceiling - Σ_i w_i·r_i)` over the differentiable rewards; 0 saves its decoding.
        reward_ceiling: samples whose weighted rewards exceed it get no gradient.
        decode_chunk: images decoded and scored with gradient at once; each chunk is recomputed in the backward pass.
    """

    matching_weight: float = 1e-3
    reward_weight: float = 1e-4
    reward_ceiling: float = 3.0
    decode_chunk: int = 4

    def __post_init__(self) -> None:
        where = "model.final_step."
        check_not_negative(where, matching_weight=self.matching_weight, reward_weight=self.reward_weight)
        check_positive(where, decode_chunk=self.decode_chunk)
        require(
            math.isfinite(self.reward_ceiling),
            f"{where}reward_ceiling must be a finite number, not {self.reward_ceiling}",
        )

    @property
    def is_trained(self) -> bool:
        """Whether anything is back-propagated through the step."""
        return self.matching_weight > 0 or self.reward_weight > 0
