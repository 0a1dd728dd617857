"""The phases of a training step of either stage, each once, on the module's own methods."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from rtdmd_lightning.data.rollout import Rollout
from rtdmd_lightning.data.stream import PromptBatch
from rtdmd_lightning.losses import RewardBackprop, total
from rtdmd_lightning.modules import ACDMDModule, RTDMDModule
from rtdmd_lightning.modules.cycle import Samples
from rtdmd_lightning.modules.training import FewStepModule
from rtdmd_lightning.roles.roles import FAKE_SCORE, GENERATOR
from rtdmd_lightning.utils.randomness import SampleRandom

Phases = dict[str, Callable[[], None]]
ROLLOUT, FAKE_STEP, GENERATOR_STEP, EVALUATION = "rollout", "fake-score step", "generator step", "evaluation"
WITHOUT_GRADIENT = (ROLLOUT, EVALUATION)


class FirstChunk(RewardBackprop):
    """Decodes and scores the first chunk alone: each is gone before the next comes, so one tells the highest moment of all."""

    def chunks(self, count: int) -> list[slice]:
        return super().chunks(count)[:1]


def evaluate(module: FewStepModule, count: int) -> None:
    """Draw so many images at once, and score them with the rewards that are trained on."""
    images = module.generate([""] * count, range(count), seed=0)
    if isinstance(module, RTDMDModule):
        module.rewards.score(images, [""] * count, [{}] * count)


def back_propagate(module: FewStepModule, role: str, *losses: Callable[[], Tensor], accumulate: bool = False) -> None:
    """One role's losses, one after the other; with `accumulate` into gradients that are there already. None are left."""
    parameters = module.roles.parameters_of(role)
    if accumulate:
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
    for loss_of in losses:
        loss = loss_of()
        with module.roles.role(role):
            loss.backward()
        del loss
    for parameter in parameters:
        parameter.grad = None


def cold_start_phases(module: ACDMDModule, local: int) -> Phases:
    """Of a cycle of stage 1 with `local` samples a process and pass; each phase leaves what the next one needs.

    With micro-batches all others wait on the CPU, and an update adds to the gradients of those before.
    """
    stops, alone = module.sampler.steps, module.micro_batch_size is None
    count = local * (module.batches_per_step if module.shares_trajectories and alone else 1)
    whole = Samples(module.embed([""] * count, module.device), SampleRandom(module.seed, range(count), module.device))
    made: list[Samples] = []

    def roll_out() -> None:
        made.append(module.with_trajectory(whole, module.device).split(local)[0])

    def fake_loss() -> Tensor:
        return total(module.fake_terms(stops, 0, made[0]))

    def generator_loss() -> Tensor:
        return total(module.generator_terms(stops, module.matching.guidance_scale[1], made[0]))

    return {
        ROLLOUT: roll_out,
        FAKE_STEP: partial(back_propagate, module, FAKE_SCORE, fake_loss, accumulate=not alone),
        GENERATOR_STEP: partial(back_propagate, module, GENERATOR, generator_loss, accumulate=not alone),
    }


def reinforcement_phases(module: RTDMDModule, local: int) -> Phases:
    """Of a micro-batch of `local` samples of stage 2; the other ones of the epoch have left their gradients."""
    batch = PromptBatch([""] * local, [{}] * local, list(range(local)))
    rows = list(range(local))
    # Any of them: as many as an epoch trains, and among fake tensors there is nothing to draw with.
    candidates = module.policy.candidates(module.sampler.steps)
    chosen = candidates[: module.policy.trained_steps if module.policy.weight else 0]
    made: list[Rollout] = []
    module.final_step_loss.reward_backprop = FirstChunk(module.backbone, module.rewards, module.final_step)

    def roll_out() -> None:
        states, log_probs, images = module.explore.sample(batch, 0, chosen)
        module.explore.score(images, batch)
        made.append(Rollout(batch, states, log_probs, torch.ones(local)))

    def fake_step() -> None:
        back_propagate(module, FAKE_SCORE, lambda: module.fake_loss(made[0]), accumulate=True)

    def generator_step() -> None:
        losses: list[Callable[[], Tensor]] = [partial(module.stochastic_loss, made[0], step) for step in chosen[:1]]
        if module.final_step.is_trained:
            losses.append(partial(module.final_loss, made[0], rows, module.matching.guidance_scale[1]))
        back_propagate(module, GENERATOR, *losses, accumulate=True)

    phases = {ROLLOUT: roll_out, FAKE_STEP: fake_step, GENERATOR_STEP: generator_step}
    if FAKE_SCORE not in module.roles.trained:
        del phases[FAKE_STEP]
    return phases
