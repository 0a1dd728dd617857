"""Batches across requests, errors that hit only those at fault, and how long answers stay."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rtdmd_lightning.rewards.base import Reward
from rtdmd_lightning.rewards.serving import scoring_queue
from rtdmd_lightning.rewards.serving.scoring_queue import Failure, Job, ScoringQueue, score_batch
from rtdmd_lightning.rewards.serving.wire import ScoreRequest, decode, encode
from rtdmd_lightning.utils.errors import UserError

CPU = torch.device("cpu")


class Lengths(Reward):
    """A prompt's length; fails on a batch with "bad" in it."""

    name, differentiable = "lengths", False

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def score(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        self.batches.append(prompts)
        if "bad" in prompts:
            raise ValueError("bad")
        return torch.tensor([len(prompt) for prompt in prompts])


class Doubled(Lengths):
    def score(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        return super().score(images, prompts, metadata).repeat(2)


def request(*prompts: str, size: int = 2) -> ScoreRequest:
    return decode(encode("lengths", torch.zeros(len(prompts), 3, size, size), list(prompts), [{} for _ in prompts]))


def job(queue: ScoringQueue, key: str) -> Job:
    found = queue.job(key, hold=0)
    assert found is not None
    return found


def drain(queue: ScoringQueue, reward: Reward) -> None:
    while queue.waiting:
        queue.settle(score_batch(reward, queue.next_batch(), CPU))


def test_the_images_of_a_batch_are_of_one_size():
    """Else it could not be scored at once, and would be tried request by request."""
    queue = ScoringQueue(batch_size=3, max_waiting=100, max_pixels=10_000)
    for key, size in {"a": 2, "b": 4, "c": 4, "d": 2}.items():
        queue.submit(key, request(key, size=size))
    batches = [[image.prompt for image in queue.next_batch()] for _ in range(3)]
    assert batches == [["a"], ["b", "c"], ["d"]]


def test_batches_fill_up_across_requests_but_not_across_sizes():
    queue, reward = ScoringQueue(batch_size=3, max_waiting=100, max_pixels=10_000), Lengths()
    for key, asked in {"a": request("1", "22"), "b": request("333", "4444"), "c": request("5", size=4)}.items():
        assert queue.submit(key, asked)
    drain(queue, reward)
    assert reward.batches == [["1", "22", "333"], ["4444"], ["5"]]
    assert [job(queue, key).scores for key in "abc"] == [[1, 2], [3, 4], [1]]
    assert queue.scored == 5


def test_a_request_is_known_by_its_id():
    queue, reward = ScoringQueue(batch_size=3, max_waiting=100, max_pixels=10_000), Lengths()
    for _ in range(2):  # a retry while it waits
        queue.submit("a", request("1", "22"))
    drain(queue, reward)
    queue.submit("a", request("1", "22"))  # and one after it was scored
    assert reward.batches == [["1", "22"]] and not queue.waiting
    assert queue.job("b", hold=0) is None


def test_an_error_hits_its_own_request_only(capsys):
    """The batch is tried again request by request; what else the failing request had waiting is not scored."""
    queue, reward = ScoringQueue(batch_size=3, max_waiting=100, max_pixels=10_000), Lengths()
    for key, asked in {"a": request("1"), "b": request("22", "bad", "333", "4444"), "c": request("55555")}.items():
        queue.submit(key, asked)
    drain(queue, reward)
    assert reward.batches == [["1", "22", "bad"], ["1"], ["22", "bad"], ["55555"]]
    assert [job(queue, key).scores for key in "ac"] == [[1], [5]]
    assert job(queue, "b").failure == Failure("ValueError('bad')", user_error=False)
    assert capsys.readouterr().err.count("Traceback") == 1


def test_scores_of_another_shape_are_an_error():
    queue = ScoringQueue(batch_size=3, max_waiting=100, max_pixels=10_000)
    queue.submit("a", request("1", "22"))
    drain(queue, Doubled())
    told = "the reward 'lengths' returned (4,) for 2 prompts"
    assert job(queue, "a").failure == Failure(told, user_error=True)


def test_a_full_queue_takes_no_more_until_it_empties():
    queue = ScoringQueue(batch_size=2, max_waiting=3, max_pixels=10_000)
    assert queue.submit("a", request("1", "2")) and queue.submit(
        "b", request("3", "4")
    )  # 4 of 3: no image is split off
    assert not queue.submit("c", request("5"))
    assert queue.submit("a", request("1", "2"))  # a retry of one that has its place
    queue.next_batch()
    assert queue.submit("c", request("5"))


def test_answers_are_forgotten_after_a_while_and_open_requests_are_not(monkeypatch):
    queue = ScoringQueue(batch_size=1, max_waiting=100, max_pixels=10_000)
    queue.submit("a", request("1"))
    queue.submit("b", request("22"))
    queue.settle(score_batch(Lengths(), queue.next_batch(), CPU))
    queue.submit("c", request("333"))
    assert job(queue, "a").done
    monkeypatch.setattr(scoring_queue, "KEEP_SECONDS", -1.0)
    queue.submit("d", request("4444"))
    assert queue.job("a", hold=0) is None
    assert not job(queue, "b").done and not job(queue, "c").done


def test_the_pixels_of_all_that_waits_are_bounded_and_are_free_again_once_scored():
    queue, reward = ScoringQueue(batch_size=2, max_waiting=100, max_pixels=12), Lengths()
    assert queue.submit("a", request("1", "2"))  # of 2 x 2 pixels each
    assert not queue.submit("b", request("3", "4"))
    assert queue.submit("c", request("5"))
    assert queue.submit("a", request("1", "2"))  # a retry of one that has its place
    assert not queue.submit("b", request("3"))
    queue.settle(score_batch(reward, queue.next_batch(), CPU))
    assert queue.submit("b", request("3", "4"))
    drain(queue, reward)
    assert queue.submit("d", request("6", "7", "8"))


def test_a_failed_requests_pixels_are_free_again(capsys):
    queue, reward = ScoringQueue(batch_size=1, max_waiting=100, max_pixels=12), Lengths()
    assert queue.submit("a", request("bad", "2", "3"))
    drain(queue, reward)
    assert queue.submit("b", request("1", "2", "3"))


def test_a_picture_that_is_none_leaves_nothing_behind():
    queue, good = ScoringQueue(batch_size=1, max_waiting=100, max_pixels=12), request("1", "2", "3")
    broken = replace(good, pictures=[picture[:40] for picture in good.pictures])
    with pytest.raises(UserError, match="not a base64 PNG"):
        queue.submit("a", broken)
    assert queue.job("a", hold=0) is None
    assert queue.submit("a", good)
