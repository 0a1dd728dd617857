"""Images are scored in a thread and on a stream of their own, while the caller goes on."""

import threading
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rtdmd_lightning.data.rollout import Rollout, collect
from rtdmd_lightning.data.scoring import Scorer, Scores
from rtdmd_lightning.data.stream import PromptBatch

CPU = torch.device("cpu")


def batches(count: int = 3, size: int = 4) -> list[PromptBatch]:
    indices = [list(range(start, start + size)) for start in range(0, count * size, size)]
    return [PromptBatch([f"prompt {i // 2}" for i in part], [{}] * size, part) for part in indices]


def roll_out(batch: PromptBatch):
    states = tuple(torch.full((len(batch.indices), 1), float(k)) for k in range(3))
    return states, {0: torch.zeros(len(batch.indices))}, torch.tensor(batch.indices, dtype=torch.float32)


def scored(roll_out, score, count: int = 3) -> tuple[list[Rollout], list[int], Scores]:
    """Rollouts, and indices and scores of their samples."""
    with Scorer(score, CPU).open() as scoring:
        return collect(batches(count), roll_out, scoring), *scoring.results()


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

    rollouts, indices, scores = scored(rolling, score)
    assert indices == scores["r"].tolist() == list(range(12))
    assert [rollout.batch.indices[0] for rollout in rollouts] == [0, 4, 8]
    assert all(rollout.advantages.tolist() == [0] * 4 for rollout in rollouts)


def test_rollouts_are_handed_on_before_their_scores_are_there():
    """The reward waits for what the caller does between its rollouts and the results."""
    went_on = threading.Event()

    def score(images, batch):
        assert went_on.wait(timeout=300)
        return {"r": images}

    with Scorer(score, CPU).open() as scoring:
        assert len(collect(batches(), roll_out, scoring)) == 3
        went_on.set()
        indices, scores = scoring.results()
    assert indices == scores["r"].tolist()


def test_a_failing_reward_is_raised():
    def score(images, batch):
        raise RuntimeError("no such colour")

    with pytest.raises(RuntimeError, match="no such colour"):
        scored(roll_out, score)


def test_a_failure_stops_the_run_also_where_scoring_is_behind():
    """The first batch fails while the third is rolled out, the second is still being scored: there is no fourth rollout."""
    third_rollout, second_begun, rolled_out, scored_first = threading.Event(), threading.Event(), [], []

    def rolling(batch):
        rolled_out.append(batch.indices[0])
        if batch.indices[0] == 8:
            third_rollout.set()
            assert second_begun.wait(timeout=300)
        return roll_out(batch)

    def score(images, batch):
        scored_first.append(batch.indices[0])
        if batch.indices[0] == 0:
            assert third_rollout.wait(timeout=300)
            raise RuntimeError("no such colour")
        second_begun.set()
        threading.Event().wait(timeout=2)  # slow
        return {"r": images}

    with pytest.raises(RuntimeError, match="no such colour"):
        scored(rolling, score, count=20)
    assert rolled_out == [0, 4, 8] and scored_first == [0, 4]


def test_what_fails_in_between_is_raised_and_no_further_image_is_scored():
    begun, seen = threading.Event(), []

    def score(images, batch):
        seen.append(batch.indices[0])
        begun.set()
        threading.Event().wait(timeout=2)  # slow
        return {"r": images}

    with pytest.raises(ZeroDivisionError), Scorer(score, CPU).open() as scoring:
        collect(batches(), roll_out, scoring)
        assert begun.wait(timeout=300)
        raise ZeroDivisionError
    assert seen == [0]


class CastCounter(TorchDispatchMode):
    """Counts casts to bfloat16."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") is torch.bfloat16
        return func(*args, **(kwargs or {}))


def test_autocast_of_the_caller_is_neither_inherited_nor_disturbed():
    """A reward that switches autocast off, as all with a network do, would empty the cache of casts in the middle of an update:
    it belongs to all threads."""
    seen = []

    def score(images, batch):
        with torch.autocast("cpu", enabled=False):
            seen.append(torch.is_autocast_enabled("cpu"))
        seen.append(torch.is_autocast_enabled("cpu"))
        return {"r": images}

    layer, features = torch.nn.Linear(2, 2, bias=False), torch.ones(1, 2, dtype=torch.bfloat16)
    scorer = Scorer(score, CPU)
    with torch.autocast("cpu", torch.bfloat16), CastCounter() as casts, scorer.open() as scoring:
        layer(features)
        scoring.add(torch.zeros(1), PromptBatch(["p"], [{}], [0]))
        scoring.results()
        layer(features)
        assert torch.is_autocast_enabled("cpu")
    assert casts.count == 1 and seen == [False, False]


class FakeStream:
    """Notes what it is asked, by which thread."""

    def __init__(self, name: str, asked: list) -> None:
        self.name, self.asked = name, asked

    def note(self, *what) -> None:
        self.asked.append((threading.current_thread() is threading.main_thread(), self.name, *what))

    def record_event(self) -> int:
        self.note("record")
        return len(self.asked)

    def wait_event(self, event: int) -> None:
        self.note("wait for", event)


class FakeImages(SimpleNamespace):
    def record_stream(self, stream: FakeStream) -> None:
        stream.note("uses the images")


def test_on_an_accelerator_the_thread_has_the_device_and_a_stream_that_waits_for_the_images(monkeypatch):
    """Stand-ins for the streams of torch.accelerator; one stream for all epochs."""
    asked: list = []
    made: list[FakeStream] = []
    current = threading.local()

    def make(device):
        assert device == torch.device("cuda", 1)
        made.append(FakeStream(f"stream {len(made)}", asked))
        return made[-1]

    def select(stream):
        assert current.device == torch.device("cuda", 1)
        current.stream = stream

    monkeypatch.setattr(torch, "Stream", make)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda device: setattr(current, "device", device))
    monkeypatch.setattr(torch.accelerator, "set_stream", select)
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda device: FakeStream("the caller's", asked))

    def score(images, batch):
        current.stream.note("scores", batch.indices)
        return {"r": torch.zeros(1)}

    scorer = Scorer(score, torch.device("cuda", 1))
    for epoch in range(2):
        with scorer.open() as scoring:
            scoring.add(FakeImages(), PromptBatch(["p"], [{}], [epoch]))
            scoring.results()
    own = [(False, "stream 0", "uses the images"), (False, "stream 0", "scores")]
    assert [entry[:3] for entry in asked] == [
        (True, "the caller's", "record"),
        (False, "stream 0", "wait for"),
        *own,
    ] * 2
    assert [entry[3] for entry in asked if entry[2] == "wait for"] == [1, 5]  # the event of just these images
    assert len(made) == 1
