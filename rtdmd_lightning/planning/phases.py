"""The phases of a training step of either stage, each once, on the module's own methods."""

from collections.abc import Callable
from functools import partial
from unittest import mock

import torch
from torch import Tensor

from rtdmd_lightning.data.rollout import Rollout
from rtdmd_lightning.data.stream import PromptBatch
from rtdmd_lightning.modules import ACDMDModule, RTDMDModule
from rtdmd_lightning.modules.core import DistillationModule
from rtdmd_lightning.modules.roles import FAKE_SCORE, GENERATOR
from rtdmd_lightning.sampling.structures import Trajectory
from rtdmd_lightning.utils.randomness import SampleRandom

Phases = dict[str, Callable[[], None]]
ROLLOUT, FAKE_STEP, GENERATOR_STEP = "rollout", "fake-score step", "generator step"


def back_propagate(
    module: DistillationModule, role: str, *losses: Callable[[], Tensor], accumulate: bool = False
) -> None:
    """One role's losses, one after the other; with `accumulate` into gradients that are there already. None are left."""
    parameters = module.parameters_of(role)
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
    """Of a cycle of stage 1 with `local` samples a process and group; each phase leaves what the next one needs."""
    stops = len(module.sampler.steps)
    count = local * (module.groups_per_step if module.shares_trajectories else 1)
    random = SampleRandom(module.seed, range(count), module.device)
    conditioning = module.embed([""] * count, module.device)
    group = slice(0, local)
    made: list[Trajectory] = []

    def roll_out() -> None:
        made.append(module.roll_out(GENERATOR, conditioning, random))

    def fake_step() -> None:
        trajectory = made[0][group]
        back_propagate(
            module,
            FAKE_SCORE,
            lambda: module.fake_score_loss(trajectory, stops, conditioning[group], random[group], 0),
        )

    def generator_step() -> None:
        trajectory, scale = made[0][group], module.guidance_scale[1]
        back_propagate(
            module,
            GENERATOR,
            lambda: module.generator_loss(trajectory, stops, conditioning[group], random[group], scale),
        )

    return {ROLLOUT: roll_out, FAKE_STEP: fake_step, GENERATOR_STEP: generator_step}


def reinforcement_phases(module: RTDMDModule, local: int) -> Phases:
    """Of a micro-batch of `local` samples of stage 2; the other ones of the epoch have left their gradients."""
    batch = PromptBatch([""] * local, [{}] * local, list(range(local)))
    rows = list(range(local))
    # Any of them: as many as an epoch trains, and among fake tensors there is nothing to draw with.
    chosen = module.candidates[: module.policy.trained_steps if module.policy.weight else 0]
    made: list[Rollout] = []
    reward, chunk = module.differentiable_reward, module.final_step.decode_chunk

    def first_chunk(samples: Tensor, part: PromptBatch) -> Tensor:
        """Each chunk is gone before the next one comes, so that one tells the highest moment of all."""
        return reward(samples[:chunk], part[:chunk])

    def roll_out() -> None:
        states, log_probs, images = module.sample(batch, 0, chosen)
        module.score(images, batch)
        made.append(Rollout(batch, states, log_probs, {}, torch.ones(local)))

    def fake_step() -> None:
        conditioning, random = module.embed(batch.prompts, module.device), module.random_of(batch)
        back_propagate(
            module,
            FAKE_SCORE,
            lambda: module.fake_matching_loss(module.last_step(made[0]), conditioning, random, "fake update"),
            accumulate=True,
        )

    def generator_step() -> None:
        losses: list[Callable[[], Tensor]] = [partial(module.policy_loss, made[0], step) for step in chosen[:1]]
        if module.final_step.is_trained:
            losses.append(partial(module.final_step_loss, made[0], rows, module.guidance_scale[1]))
        with mock.patch.object(module, "differentiable_reward", first_chunk):
            back_propagate(module, GENERATOR, *losses, accumulate=True)

    phases = {ROLLOUT: roll_out, FAKE_STEP: fake_step, GENERATOR_STEP: generator_step}
    if not module.final_step.matching_weight:
        del phases[FAKE_STEP]
    return phases
