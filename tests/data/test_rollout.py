"""Between the phases of an epoch: shared noise, overlapping scoring, advantages over all processes."""

import threading

import pytest
import torch

from rtdmd_lightning.data.rollout import collect, shared_noise, with_advantages
from rtdmd_lightning.data.stream import PromptBatch, PromptStream
from rtdmd_lightning.objectives import group_advantages


def batches(count: int = 3, size: int = 4) -> list[PromptBatch]:
    indices = [list(range(start, start + size)) for start in range(0, count * size, size)]
    return [PromptBatch([f"prompt {i // 2}" for i in part], [{}] * size, part) for part in indices]


def roll_out(batch: PromptBatch):
    states = tuple(torch.full((len(batch.indices), 1), float(k)) for k in range(3))
    return states, {0: torch.zeros(len(batch.indices))}, torch.tensor(batch.indices, dtype=torch.float32)


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


def test_scoring_overlaps_the_next_rollout():
    """The first batch's scores are not there before the second rollout has begun: one after the other would hang here."""
    second_rollout_began = threading.Event()

    def rolling(batch):
        if batch.indices[0] > 0:
            second_rollout_began.set()
        return roll_out(batch)

    def score(images, batch):
        assert second_rollout_began.wait(timeout=300)
        return {"r": images}

    rollouts = collect(batches(), rolling, score)
    assert [rollout.rewards["r"].tolist() for rollout in rollouts] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_a_failing_reward_is_raised():
    def score(images, batch):
        raise RuntimeError("no such colour")

    with pytest.raises(RuntimeError, match="no such colour"):
        collect(batches(), roll_out, score)


def test_a_failure_stops_the_run_also_where_scoring_is_behind():
    """The first batch fails while the third is rolled out, the second is still being scored: there is no fourth rollout."""
    third_rollout, second_begun, rolled_out, scored = threading.Event(), threading.Event(), [], []

    def rolling(batch):
        rolled_out.append(batch.indices[0])
        if batch.indices[0] == 8:
            third_rollout.set()
            assert second_begun.wait(timeout=300)
        return roll_out(batch)

    def score(images, batch):
        scored.append(batch.indices[0])
        if batch.indices[0] == 0:
            assert third_rollout.wait(timeout=300)
            raise RuntimeError("no such colour")
        second_begun.set()
        threading.Event().wait(timeout=2)  # slow
        return {"r": images}

    with pytest.raises(RuntimeError, match="no such colour"):
        collect(batches(count=20), rolling, score)
    assert rolled_out == [0, 4, 8] and scored == [0, 4]


def test_advantages_are_those_of_all_processes_together():
    """Two processes, each with a half of every micro-batch, so that groups of 4 span both."""
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(16, generator=generator)
    groups = [str(index // 4) for index in range(16)]
    expected = group_advantages({"r": rewards}, groups, {"r": 2.0})

    def score(images, batch):
        return {"r": rewards[batch.indices], "only logged": torch.zeros(len(batch.indices))}

    ranks = []
    for rank in range(2):
        parts = [[m * 4 + rank * 2, m * 4 + rank * 2 + 1] for m in range(4)]
        ranks.append(collect([PromptBatch(["p"] * 2, [{}] * 2, part) for part in parts], roll_out, score))
    indices = [torch.tensor([i for r in rollouts for i in r.batch.indices]) for rollouts in ranks]

    for rollouts in ranks:
        gathered = iter([torch.cat(indices), rewards[torch.cat(indices)], torch.zeros(16)])
        done, everyones = with_advantages(
            rollouts,
            {"r": 2.0, "only logged": 0.0},
            images_per_prompt=4,
            global_std=True,
            gather=lambda values, gathered=gathered: next(gathered),
        )
        for rollout in done:
            torch.testing.assert_close(rollout.advantages, expected[rollout.batch.indices])
        assert everyones["r"].shape == (16,)
