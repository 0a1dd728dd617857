"""What is noted by sample is logged once, over all samples of all processes, and forgotten."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from rtdmd_lightning.losses import Term
from rtdmd_lightning.modules.notes import Notes


def alone(values):
    """One process."""
    return values


def test_means_are_over_all_samples_and_not_over_the_batches():
    notes = Notes()
    notes.mean("loss", torch.tensor([1.0, 2.0, 3.0]))
    notes.mean("loss", torch.tensor([10.0]))
    assert notes.summary(alone) == {"loss": torch.tensor(4.0)}


def test_the_largest_is_kept():
    notes = Notes()
    notes.largest("deviation", torch.tensor([-7.0, -3.0]))
    notes.largest("deviation", torch.tensor([-5.0]))
    assert notes.summary(alone) == {"deviation": torch.tensor(-3.0)}


def test_names_without_samples_are_left_out():
    notes = Notes()
    for note in (notes.mean, notes.largest):
        note("nothing", torch.empty(0))
    notes.mean("loss", torch.empty(0))
    notes.mean("loss", torch.tensor([5.0]))
    assert notes.summary(alone) == {"loss": torch.tensor(5.0)}


def test_a_summary_forgets():
    notes = Notes()
    notes.mean("loss", torch.tensor([1.0]))
    notes.largest("deviation", torch.tensor([9.0]))
    notes.summary(alone)
    assert notes.summary(alone) == {}
    notes.mean("loss", torch.tensor([3.0]))
    notes.largest("deviation", torch.tensor([2.0]))
    assert notes.summary(alone) == {"loss": torch.tensor(3.0), "deviation": torch.tensor(2.0)}


def test_what_is_noted_keeps_no_gradient():
    notes = Notes()
    slope = torch.tensor([2.0], requires_grad=True)
    notes.mean("loss", slope)
    notes.largest("deviation", slope)
    assert not any(value.requires_grad for value in notes.summary(alone).values())


def test_terms_are_noted_unweighted_by_role_and_step_with_their_weights():
    """A term is a mean: it counts as often as it has samples."""
    notes = Notes()
    for value, count in ((1.0, 3), (5.0, 1)):
        notes.terms("generator", {"kl": Term(torch.tensor(value), 0.5)}, count, "step_2")
        notes.terms("fake_score", {"ambient": Term(torch.tensor(value))}, count)
    assert notes.summary(alone) == {
        "generator/kl_step_2": torch.tensor(2.0),
        "weight/generator/kl": torch.tensor(0.5),
        "fake_score/ambient": torch.tensor(2.0),
        "weight/fake_score/ambient": torch.tensor(1.0),
    }


def test_terms_of_no_sample_leave_only_their_weight():
    """A process without any computes along on one; what it computes is no result."""
    notes = Notes()
    notes.terms("generator", {"reward": Term(torch.tensor(4.0), 0.1)}, 0)
    assert {name: value.item() for name, value in notes.summary(alone).items()} == {
        "weight/generator/reward": pytest.approx(0.1)
    }


def test_samples_of_all_processes_count_alike():
    """Two with other numbers of samples, one of them with none of a name, get the same summary."""
    noted = {"loss": ([1.0, 2.0, 3.0], [10.0]), "rare": ([], [6.0]), "nowhere": ([], [])}
    together = Barrier(2, timeout=30)
    sent = [torch.empty(0)] * 2

    def summary(rank):
        def gather(values):
            sent[rank] = values
            together.wait()
            gathered = torch.cat(sent)
            together.wait()
            return gathered

        notes = Notes()
        for name, of_processes in noted.items():
            notes.mean(f"mean/{name}", torch.tensor(of_processes[rank]))
            notes.largest(f"largest/{name}", torch.tensor(of_processes[rank]))
        return notes.summary(gather)

    with ThreadPoolExecutor(2) as processes:
        summaries = list(processes.map(summary, range(2)))
    expected = {"mean/loss": 4.0, "mean/rare": 6.0, "largest/loss": 10.0, "largest/rare": 6.0}
    assert summaries == [{name: torch.tensor(value) for name, value in expected.items()}] * 2
