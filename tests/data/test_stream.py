"""The stream of prompts: every epoch a new order of all of them, split over processes without a seam."""

import itertools

import lightning as L
import pytest
from torch.utils.data import DataLoader

from rtdmd_lightning.data import RolloutDataModule
from rtdmd_lightning.data.stream import PromptStream, StepSampler, collate
from rtdmd_lightning.utils.errors import UserError

PROMPTS = [{"prompt": f"prompt {number}", "number": number} for number in range(50)]


def epoch(stream: PromptStream, number: int) -> list[int]:
    positions = range(number * len(PROMPTS), (number + 1) * len(PROMPTS))
    return [stream[position][1]["number"] for position in positions]


def steps(count: int, **options) -> list[list[int]]:
    settings = {"batch_size": 4, "batches": 1, "first_step": 0, "rank": 0, "world_size": 1}
    return list(itertools.islice(StepSampler(**settings | options), count))


def test_every_epoch_is_a_permutation_of_its_own():
    stream = PromptStream(PROMPTS, seed=0)
    epochs = [epoch(stream, number) for number in range(6)]
    assert all(sorted(order) == list(range(50)) for order in epochs)
    assert len({tuple(order) for order in epochs}) == 6
    assert epochs[0] != list(range(50))


def test_the_order_is_a_function_of_the_seed():
    stream, same, other = (PromptStream(PROMPTS, seed=seed) for seed in (3, 3, 4))
    assert epoch(stream, 2) == epoch(same, 2) != epoch(other, 2)


def test_positions_can_be_read_in_any_order():
    """A resumed run begins in the middle; neither what was read before nor how much of it matters."""
    stream = PromptStream(PROMPTS, seed=0)
    positions = [*range(0, 1000, 37), 999, 0, 512]
    assert [stream[position] for position in positions] == [PromptStream(PROMPTS, seed=0)[p] for p in positions]
    assert stream[777][0] == 777


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_processes_share_out_the_same_positions(groups, world_size):
    """Step by step, the ranks' parts are disjoint, equally long, and together the single process's."""
    options = {"batch_size": 8, "batches": groups, "world_size": world_size}
    ranks = [steps(5, **options, rank=rank) for rank in range(world_size)]
    for step, parts in enumerate(zip(*ranks, strict=True)):
        assert {len(part) for part in parts} == {groups * 8 // world_size}
        together = sorted(position for part in parts for position in part)
        assert together == list(range(step * groups * 8, (step + 1) * groups * 8))


def test_groups_line_up_over_the_processes():
    """In local slices of B/W, rank r's g-th slice is the r-th part of the step's g-th group of B."""
    ranks = [steps(2, batch_size=4, batches=3, world_size=2, rank=rank)[1] for rank in range(2)]
    assert ranks == [[12, 13, 16, 17, 20, 21], [14, 15, 18, 19, 22, 23]]
    for group in range(3):
        parts = [rank[2 * group : 2 * group + 2] for rank in ranks]
        assert parts[0] + parts[1] == steps(2, batch_size=4, batches=3)[1][4 * group : 4 * group + 4]


@pytest.mark.parametrize("first_step", [1, 2, 7])
def test_resuming_goes_on_exactly(first_step):
    options = {"batch_size": 6, "batches": 2, "world_size": 3, "rank": 1}
    assert steps(3, **options, first_step=first_step) == steps(first_step + 3, **options)[first_step:]


def test_resuming_on_another_number_of_processes_goes_on_where_the_first_stopped():
    before = [steps(4, world_size=2, rank=rank) for rank in range(2)]
    after = [steps(2, world_size=4, rank=rank, first_step=4) for rank in range(4)]
    positions = sorted(position for rank in [*before, *after] for step in rank for position in step)
    assert positions == list(range(24))


def test_batch_that_does_not_divide_names_the_arithmetic():
    with pytest.raises(UserError, match=r"model\.batch_size 6 .* 4: 6 / 4 = 1\.50 samples per process"):
        steps(1, batch_size=6, world_size=4)


def test_loader_collates_prompts_metadata_and_positions():
    stream = PromptStream(PROMPTS, seed=0)
    sampler = StepSampler(batch_size=4, batches=2, first_step=11, rank=1, world_size=2)
    batch = next(iter(DataLoader(stream, batch_sampler=sampler, collate_fn=collate)))
    assert batch.indices == [90, 91, 94, 95]
    assert batch.metadata == [stream[position][1] for position in batch.indices]
    assert batch.prompts == [entry["prompt"] for entry in batch.metadata]


class OneRankOfTwo:
    """As much of a trainer as the data module asks for."""

    global_step, global_rank, world_size = 5, 1, 2


def test_data_module_starts_at_the_trainers_step_and_rank(tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(entry["prompt"] for entry in PROMPTS))
    data = RolloutDataModule(str(tmp_path / "prompts.txt"), batch_size=4, batches_per_step=2, seed=9)
    assert isinstance(data, L.LightningDataModule)
    data.trainer = OneRankOfTwo()
    batches = list(itertools.islice(data.train_dataloader(), 2))
    assert [batch.indices for batch in batches] == [[42, 43, 46, 47], [50, 51, 54, 55]]
    stream = PromptStream(PROMPTS, seed=9)
    assert batches[0].prompts == [stream[position][1]["prompt"] for position in (42, 43, 46, 47)]


def test_data_module_refuses_an_indivisible_batch(tmp_path):
    (tmp_path / "prompts.txt").write_text("a dog")
    data = RolloutDataModule(str(tmp_path / "prompts.txt"), batch_size=3)
    data.trainer = OneRankOfTwo()
    with pytest.raises(UserError, match=r"3 / 2 = 1\.50"):
        data.train_dataloader()
