"""Closed forms of the sums, by hand."""

import pytest

from rtdmd_lightning.planning import tables
from rtdmd_lightning.planning.estimate import GIB, Base, MemoryEstimate, Trace, four_copies, one_base, sharded

TRACE = Trace(
    bases=(Base(total=1000, largest_block=100, outside=40),),
    trained=80,
    adapters=120,
    gradients=40,
    vae=7,
    text_encoders=500,
    rewards={"clipscore": 1, "geneval": 2},
    differentiable={"clipscore": 1},
    checkpointed={"rollout": 60, "fake-score step": 140},
    full={"rollout": 60, "fake-score step": 940},
)


def test_one_process():
    estimate = one_base(TRACE, 1, checkpointing=True)
    assert estimate == MemoryEstimate(1000, 120, 40, 160, 100, 7, 500, 3)
    assert estimate.total == 1930 and estimate.with_cached_prompts == 1430
    assert one_base(TRACE, 1, checkpointing=False).total == 1930 + 800
    assert one_base(TRACE._replace(embeddings=5), 1, checkpointing=True).total == 1935


def test_ddp_keeps_buckets_of_what_it_trains():
    assert one_base(TRACE, 8, checkpointing=True).total == 1930 + 80


def test_fsdp2_shards_and_gathers_two_blocks_and_the_rest():
    estimate = sharded(TRACE, 4, checkpointing=True)
    assert (estimate.base, estimate.adapters, estimate.gradients, estimate.optimizer) == (250 + 40 + 200, 30, 10, 40)
    assert (estimate.vae, estimate.text_encoders, estimate.activations) == (7, 500, 100)
    assert sharded(TRACE, 1, checkpointing=True).base == 1000


def test_four_copies_are_four_whether_or_not_the_generator_has_its_own_base():
    two_bases = TRACE._replace(bases=TRACE.bases * 2)
    assert four_copies(TRACE, 8, checkpointing=True).base == four_copies(two_bases, 8, checkpointing=True).base == 4000
    assert one_base(two_bases, 8, checkpointing=True).base == 2000


@pytest.mark.parametrize(("size", "gpu"), [(21.5, "24 GB"), (22, "48 GB"), (44, "80 GB"), (72.5, "none")])
def test_the_smallest_gpu_that_fits_with_headroom(size, gpu):
    assert MemoryEstimate.fits(int(size * GIB)) == gpu


def test_markdown_is_a_row_below_its_header():
    ours = MemoryEstimate(10 * GIB, GIB, GIB, 2 * GIB, 4 * GIB, GIB, 8 * GIB, 0)
    more = MemoryEstimate(**vars(ours) | {"activations": 9 * GIB, "base": 40 * GIB})
    columns = {tables.DDP: ours, tables.UNCHECKPOINTED: more, tables.FSDP2: ours, tables.COPIES: more}
    header, rule, row = tables.markdown("title", columns, 8).splitlines()
    assert header.count("|") == rule.count("|") == row.count("|")
    sums = "19.0 (24 GB), 27.0 (48 GB)"
    assert row == f"| title | 8 | 10.0 | 4.0 | 1.0 | 8.0 | 4.0, 9.0 | {sums} | {sums} | 54.0 (80 GB), 62.0 (80 GB) |"
