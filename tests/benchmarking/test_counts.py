"""What a training step asks of an accelerator: counted rightly, and within its budget."""

from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from rtdmd_lightning import bench
from rtdmd_lightning.benchmarking.counts import Counting, Counts, count
from rtdmd_lightning.planning.fake_device import FAKE_DEVICE, faked
from tests.support.tiny import REPOSITORY

BUDGETS = {  # of SD3.5-M at 512 px, 9 samples, with gradient checkpointing
    "rollout": Counts(launches=9_000, waits=0, copies=0, switches=8),
    "fake_updates": Counts(launches=17_300, waits=1, copies=0, switches=6),
    "generator_update": Counts(launches=13_200, waits=1, copies=0, switches=6),
}


def counted(function) -> Counter:
    with faked(), Counting() as counting:
        function()
    return +counting.found


def test_a_launch_is_more_than_a_view():
    def function() -> None:
        x = torch.zeros(4, 4, device=FAKE_DEVICE)  # 1
        y = x.t()[:2].detach()
        torch.empty_like(y)
        F.linear(y + 1, x)  # 2
        torch.zeros(3) + 1  # on the CPU

    assert counted(function) == {"launches": 3, "flops": 2 * 2 * 4 * 4}


def test_the_backward_pass_counts():
    def function() -> None:
        weight = torch.zeros(8, 8, device=FAKE_DEVICE, requires_grad=True)
        (weight @ weight).sum().backward()

    assert counted(function)["flops"] == 3 * 2 * 8**3


def test_waits_are_told_from_copies_that_nobody_waits_for():
    def function() -> None:
        x = torch.zeros(3, device=FAKE_DEVICE)
        float(x.sum())  # a wait
        x.cpu()  # and another
        x.copy_(torch.zeros(3))  # a copy
        torch.zeros(3).to(FAKE_DEVICE)  # and another
        torch.zeros(3).to(FAKE_DEVICE, non_blocking=True)
        x.to(torch.bfloat16)
        float(torch.zeros(()))

    found = counted(function)
    assert (found["waits"], found["copies"]) == (2, 2)


@pytest.mark.slow
def test_a_cycle_of_sd35m_keeps_its_budget(monkeypatch):
    """A change that needs more than this must say why; one that needs less lowers it."""
    monkeypatch.chdir(REPOSITORY)
    found = count(Path("configs/cold_start/sd35m.yaml"), ["--model.batch_size=9"])
    assert found.keys() == BUDGETS.keys()
    over = {
        f"{phase}: {name}": (value, limit)
        for phase, budget in BUDGETS.items()
        for name, value, limit in zip(Counts._fields[:-1], found[phase], budget, strict=False)
        if value > limit
    }
    assert over == {}
    # What an H100 counted in the same updates.
    assert [found[phase].flops / 1e12 for phase in ("fake_updates", "generator_update")] == pytest.approx(
        [193.4, 124.7], rel=1e-3
    )


@pytest.mark.slow
def test_the_command_prints_a_row_a_phase(capsys):
    config = REPOSITORY / "configs/cold_start/tiny_sd3.yaml"
    bench.main(["--counts", str(config)])
    printed = capsys.readouterr().out
    assert all(phase in printed for phase in BUDGETS) and "launches" in printed
