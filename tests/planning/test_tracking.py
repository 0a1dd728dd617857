"""What tensors hold is counted once, while they live; what code reads of fake numbers is answered."""

import torch

from rtdmd_lightning.planning.fake_device import FAKE_DEVICE, faked
from rtdmd_lightning.planning.tracking import AllocationTracker


def test_storages_count_once_and_until_they_are_let_go():
    with AllocationTracker() as tracker:
        a = torch.zeros(1000)
        b = a.view(10, 100).t()
        assert tracker.current == 4000
        c = torch.zeros(500)
        del a, c
        assert (tracker.current, tracker.peak) == (4000, 6000)  # the view keeps its storage
        del b
        tracker.restart()
    assert (tracker.current, tracker.peak) == (0, 0)


def test_saved_tensors_count_until_the_backward_pass():
    weight = torch.zeros(100, requires_grad=True)
    with AllocationTracker() as tracker:
        tracker.hold([weight])
        loss = (weight.exp() * 2).exp().sum()  # two results are saved, the product is not
        assert tracker.current == 3 * 400 + 4
        loss.backward()
        del loss
    assert tracker.current == 2 * 400  # weight and gradient


def test_fake_tensors_are_counted_as_real_ones():
    def peak() -> int:
        with AllocationTracker() as tracker:
            a = torch.zeros(64, 64, requires_grad=True)
            (a @ a).relu().sum().backward()
        return tracker.peak

    real = peak()
    with faked():
        assert peak() == real > 2 * 64 * 64 * 4


def test_of_one_device_alone():
    with faked(), AllocationTracker(FAKE_DEVICE) as tracker:
        there = torch.zeros(100, device=FAKE_DEVICE)
        here = there.to("cpu")
        assert here.device.type == "cpu" and tracker.current == 400


def test_code_that_reads_a_fake_number_goes_on():
    with faked():
        assert (
            torch.isfinite(torch.zeros(3)).all() and float(torch.zeros(())) == 1.0 and int(torch.zeros(1).long()) == 1
        )


def test_fake_modules_are_cast_in_place():
    with faked():
        layer = torch.nn.Linear(2, 2)
        weight = layer.weight
        assert layer.to(torch.bfloat16).weight is weight and weight.dtype == torch.bfloat16
