"""What lies between the phases of a reinforcement epoch: rollouts, rewards, advantages (METHOD section 4, items 1 to 3).

The DataModule hands a training step the prompts of its whole epoch. The rollouts themselves are made inside that step rather
than by the DataLoader: they need the generator's current weights, and so a step stays a function of (weights, step), which
is what resuming and evaluating by step counts rely on.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from rtdmd_lightning.data.scoring import Scores, Scoring
from rtdmd_lightning.data.stream import PromptBatch
from rtdmd_lightning.objectives import group_advantages
from rtdmd_lightning.sampling.sampler import Sampler
from rtdmd_lightning.sampling.structures import ExecutedStep
from rtdmd_lightning.utils.randomness import keyed_generator
from rtdmd_lightning.utils.transfer import send


@dataclass(frozen=True)
class Rollout:
    """One process's part of a micro-batch, B samples, kept on the CPU between the phases.

    `states[k]` sits at level k of the schedule, in the dtype of storage; `log_probs` are `[B]` for each step that is trained,
    under the weights that took it; `advantages` are `[B]`, zeros until they are known. `update_log_probs` are those that the
    first update on it has computed under the same weights, on the device, by step.
    """

    batch: PromptBatch
    states: tuple[Tensor, ...]
    log_probs: dict[int, Tensor]
    advantages: Tensor
    update_log_probs: dict[int, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.advantages)

    def states_on(self, device: torch.device, *numbers: int) -> list[Tensor]:
        """Some of the states, float32 on the device: one copy for which nothing waits."""
        return [state.float() for state in send([self.states[number] for number in numbers], device)]

    def last_step(self, sampler: Sampler, device: torch.device) -> ExecutedStep:
        """The deterministic step that it ended with; its velocity follows from the two states."""
        state, sample = self.states_on(device, -2, -1)
        sigma = sampler.sigmas[-2]
        return ExecutedStep(sigma, 0.0, state, (state - sample) / sigma, torch.zeros_like(state), sample)

    def at(self, rows: list[int]) -> "Rollout":
        """Some of its samples."""
        return Rollout(
            self.batch.at(rows),
            tuple(state[rows] for state in self.states),
            {step: values[rows] for step, values in self.log_probs.items()},
            self.advantages[rows],
        )

    @staticmethod
    def cat(parts: Sequence["Rollout"]) -> "Rollout":
        """The samples of all parts."""
        first = parts[0]
        return Rollout(
            PromptBatch.cat([part.batch for part in parts]),
            tuple(torch.cat(states) for states in zip(*(part.states for part in parts), strict=True)),
            {step: torch.cat([part.log_probs[step] for part in parts]) for step in first.log_probs},
            torch.cat([part.advantages for part in parts]),
        )


def shared_noise(prompts: Sequence[str], shape: Sequence[int], *, seed: int, epoch: int, step: int) -> Tensor:
    """SubGRPO's noise of a step that is not trained, `[B, *shape]`: a function of (seed, prompt, step, epoch) alone."""
    of_prompt = {
        prompt: torch.randn(*shape, generator=keyed_generator(seed, epoch, f"shared step {step} of {prompt}"))
        for prompt in dict.fromkeys(prompts)
    }
    return torch.stack([of_prompt[prompt] for prompt in prompts])


def collect(
    batches: Iterable[PromptBatch],
    roll_out: Callable[[PromptBatch], tuple[tuple[Tensor, ...], dict[int, Tensor], Tensor]],
    scoring: Scoring,
) -> list[Rollout]:
    """Roll out every batch and have its images scored, while the next ones are rolled out and beyond.

    `roll_out` gives the states, their log-probabilities and the images. A reward that has failed stops the run before the next
    rollout. The advantages are zeros: see `with_advantages`.
    """
    rollouts = []
    for batch in batches:
        scoring.raise_failure()
        states, log_probs, images = roll_out(batch)
        scoring.add(images, batch)
        rollouts.append(Rollout(batch, states, log_probs, advantages=torch.zeros(len(batch.prompts))))
    return rollouts


def shuffled(rollouts: Sequence[Rollout], generator: torch.Generator) -> list[Rollout]:
    """As many rollouts of the same sizes, with all their samples in another order."""
    together = Rollout.cat(rollouts)
    order = torch.randperm(len(together), generator=generator).split([len(rollout) for rollout in rollouts])
    return [together.at(rows.tolist()) for rows in order]


def with_advantages(
    rollouts: Sequence[Rollout],
    indices: Sequence[int],
    scores: Scores,
    weights: Mapping[str, float],
    *,
    images_per_prompt: int,
    global_std: bool,
    gather: Callable[[Tensor], Tensor],
) -> tuple[list[Rollout], Scores]:
    """The rollouts with their advantages among the samples of all processes, and all processes' rewards by name.

    `scores` are `[N]` by name, of this process's samples with these `indices`; the rollouts hold the same samples in any order.
    `gather` brings a `[N]` tensor of every process together as `[processes * N]`. A sample's group is told by its global
    index, of which `images_per_prompt` in a row share a prompt.
    """
    everyones = gather(torch.tensor(indices)).tolist()
    rewards = {name: gather(values).cpu() for name, values in scores.items()}
    pulling = {name: weight for name, weight in weights.items() if weight != 0}
    groups = [str(index // images_per_prompt) for index in everyones]
    advantages = group_advantages(
        {name: rewards[name] for name in pulling}, groups, pulling, global_std=global_std
    ).float()
    of_index = dict(zip(everyones, advantages.tolist(), strict=True))
    return [
        replace(rollout, advantages=torch.tensor([of_index[index] for index in rollout.batch.indices]))
        for rollout in rollouts
    ], rewards
