"""Between the phases of an epoch: shared noise, advantages over all processes."""

import pytest
import torch

from rtdmd_lightning.data.rollout import Rollout, shared_noise, shuffled, with_advantages
from rtdmd_lightning.data.stream import PromptBatch, PromptStream
from rtdmd_lightning.objectives import group_advantages


def test_shared_noise_is_a_groups_own():
    prompts, shape = ["a", "b", "a"], (2, 3)
    noise = shared_noise(prompts, shape, seed=0, epoch=4, step=1)
    assert noise.shape == (3, *shape) and torch.equal(noise[0], noise[2]) and not torch.equal(noise[0], noise[1])
    assert torch.equal(noise[1:2], shared_noise(["b"], shape, seed=0, epoch=4, step=1))  # whatever else a rank draws
    for other in ({"seed": 1}, {"epoch": 5}, {"step": 2}):
        assert not torch.equal(noise[1:2], shared_noise(["b"], shape, **{"seed": 0, "epoch": 4, "step": 1} | other))


def test_a_stream_repeats_each_prompt_in_a_row():
    stream = PromptStream([{"prompt": str(i)} for i in range(5)], seed=0, repeats=3)
    prompts = [stream[position][1]["prompt"] for position in range(15)]
    assert prompts[0::3] == prompts[1::3] == prompts[2::3] and sorted(prompts[::3]) == list("01234")
    assert stream[14][0] == 14


def rollout(indices: list[int]) -> Rollout:
    batch = PromptBatch(["p"] * len(indices), [{}] * len(indices), indices)
    return Rollout(batch, (torch.tensor(indices),), {}, torch.zeros(len(indices)))


@pytest.mark.parametrize("shuffle", [False, True])
def test_advantages_are_those_of_all_processes_together(shuffle):
    """Two processes, each with a half of every micro-batch, so that groups of 4 span both. Shuffled samples keep their own."""
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(16, generator=generator)
    groups = [str(index // 4) for index in range(16)]
    expected = group_advantages({"r": rewards}, groups, {"r": 2.0})
    ranks = [[[m * 4 + rank * 2, m * 4 + rank * 2 + 1] for m in range(4)] for rank in range(2)]
    indices = [[index for part in parts for index in part] for parts in ranks]
    everyones = torch.tensor(indices[0] + indices[1])

    for parts, own in zip(ranks, indices, strict=True):
        rollouts = [rollout(part) for part in parts]
        if shuffle:
            rollouts = shuffled(rollouts, generator)
            assert [index for part in rollouts for index in part.batch.indices] != own
        gathered = iter([everyones, rewards[everyones], torch.zeros(16)])
        done, of_all = with_advantages(
            rollouts,
            own,
            {"r": rewards[own], "only logged": torch.zeros(8)},
            {"r": 2.0, "only logged": 0.0},
            images_per_prompt=4,
            global_std=True,
            gather=lambda values, gathered=gathered: next(gathered),
        )
        for part in done:
            torch.testing.assert_close(part.advantages, expected[part.batch.indices])
            assert part.states[0].tolist() == part.batch.indices
        assert of_all["r"].shape == (16,)
