"""A remote reward is as good as the reward itself, whatever happens to its server on the way."""

import copy
import http.client
import logging
import math
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from rtdmd_lightning.evaluation.images import write_image
from rtdmd_lightning.evaluation.predict import ScoreImages
from rtdmd_lightning.evaluation.tasks import ImageTask
from rtdmd_lightning.rewards.mixture import RewardError, RewardGone, RewardMixture
from rtdmd_lightning.rewards.remote import RemoteReward
from rtdmd_lightning.rewards.shapes import ShapesReward
from rtdmd_lightning.shapes.prompts import held_out_prompts
from rtdmd_lightning.shapes.render import render_batch
from rtdmd_lightning.shapes.world import sample_scene
from rtdmd_lightning.utils.errors import UserError
from tests.support.counting import REPOSITORY, CountingReward, serve_process, served, wait_until

CPU = torch.device("cpu")


def images(count: int, seed: int = 0, size: int = 6) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def batch(count: int, step: int = 0) -> tuple[Tensor, list[str], list[dict]]:
    numbers = [100 * step + index for index in range(count)]
    return images(count, step), [f"prompt {number}" for number in numbers], [{"n": number} for number in numbers]


def expected(pixels: Tensor, metadata: list[dict]) -> Tensor:
    levels = (pixels.clamp(0, 1) * 255).round() / 255
    return levels.mean(dim=(1, 2, 3)) + torch.tensor([float(entry["n"]) for entry in metadata])


def connected(url: str, name: str = "counting", **options) -> RemoteReward:
    reward = RemoteReward(url, name, **options)
    reward.to(CPU)
    return reward


@pytest.fixture
def counting(tmp_path):
    return CountingReward(str(tmp_path))


@pytest.fixture
def no_server():
    """An address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize("strict", [False, True])
def test_the_same_scores_as_the_reward_itself(strict):
    """On a mixture, with real metadata, in requests and micro-batches of other sizes than the batch."""
    metadata = held_out_prompts(3)
    rng = np.random.default_rng(0)
    pixels = render_batch([sample_scene(entry, rng, allow_unseen=True) for entry in metadata]).roll(1, 0)
    prompts = [entry["prompt"] for entry in metadata]
    own = ShapesReward(strict=strict)
    with served(own, batch_size=4) as url:
        mixture = RewardMixture([RemoteReward(url, own.name, images_per_request=5)], {own.name: 1.0})
        mixture.to(CPU)
        scores = mixture.score(pixels, prompts, metadata)[own.name]
    assert scores.dtype == torch.float32 and scores.unique().numel() > 1
    torch.testing.assert_close(scores, own.score(pixels, prompts, metadata), rtol=0, atol=1e-6)
    with pytest.raises(UserError, match=r"model\.rewards\.back_propagated"):
        RewardMixture(list(mixture.rewards.values()), {own.name: 1.0}, [own.name])


def test_what_the_reward_sees_are_grey_levels(counting):
    pixels, prompts, metadata = batch(3)
    pixels = 1.2 * pixels - 0.1  # a decoder overshoots
    with served(counting) as url:
        scores = connected(url).score(pixels.bfloat16().requires_grad_(), prompts, metadata)
    torch.testing.assert_close(torch.stack(counting.seen), (pixels.bfloat16().float().clamp(0, 1) * 255).round() / 255)
    torch.testing.assert_close(scores, expected(pixels.bfloat16().float(), metadata))
    assert not scores.requires_grad


def test_no_images_are_no_scores(counting):
    with served(counting) as url:
        assert connected(url).score(images(0), [], []).shape == (0,)


def test_many_clients_share_batches_and_get_their_own_scores(counting):
    """The server is held up by the first request: the others' images, of two sizes, are batched once it goes on."""
    (counting.folder / "hold").touch()
    with served(counting, batch_size=4) as url, ThreadPoolExecutor(8) as pool:
        first = pool.submit(connected(url).score, images(1), ["stop here"], [{"n": 0}])
        wait_until((counting.folder / "stopped").exists)
        asked = [
            (images(3, step, 6 if step < 4 else 9), [f"{step}"] * 3, [{"n": 10 * step + i} for i in range(3)])
            for step in range(6)
        ]
        running = [pool.submit(connected(url).score, *question) for question in asked]
        wait_until(lambda: connected(url)._exchange("GET", "/health", None)[1]["waiting"] == 18)
        (counting.folder / "hold").unlink()
        for (pixels, _, metadata), scores in zip(asked, running, strict=True):
            torch.testing.assert_close(scores.result(), expected(pixels, metadata))
        assert first.result().shape == (1,)
    sizes = [len(prompts) for prompts in counting.batches]
    assert sum(sizes) == 19 and max(sizes) == 4
    assert any(len(set(prompts)) > 1 for prompts in counting.batches)
    assert len(sizes) < 1 + 6 * 2  # each request alone would take at least a batch


def test_a_lost_answer_is_asked_for_again_and_not_scored_twice(counting, monkeypatch):
    """Of every question the first answer never arrives, nor does the first attempt to hand a request in."""
    exchange, asked = RemoteReward._exchange, set()

    def unreliable(self, method, path, body):
        if (method, path) in asked:
            return exchange(self, method, path, body)
        asked.add((method, path))
        exchange(self, method, path, body)
        raise ConnectionResetError("lost on the way")

    monkeypatch.setattr(RemoteReward, "_exchange", unreliable)
    pixels, prompts, metadata = batch(5)
    with served(counting) as url:
        scores = connected(url, images_per_request=2).score(pixels, prompts, metadata)
    assert len(asked) == 1 + 2 * 3
    torch.testing.assert_close(scores, expected(pixels, metadata))
    assert sorted(counting.scored()) == prompts


@pytest.mark.slow
def test_a_server_killed_and_restarted_during_a_run(tmp_path, no_server, caplog):
    """SIGKILL in the middle of a batch of the third step: the run waits, goes on, and every image is scored once.

    The reward is one of the user's, by its import path, in a process of its own.
    """
    url, record = no_server, CountingReward(str(tmp_path))
    command = ("--reward", "tests.support.counting.CountingReward", "--options.folder", str(tmp_path))
    command += ("--port", url.rpartition(":")[2], "--batch_size", "3")
    questions = [batch(5, step) for step in range(5)]
    questions[2][1][0] = "stop here"
    (tmp_path / "hold").touch()
    mixture = RewardMixture([RemoteReward(url, "counting", images_per_request=2)], {"counting": 1.0})

    scores: list[Tensor] = []

    def run() -> None:
        mixture.to(CPU)  # before the server is up: it is waited for
        scores.extend(mixture.score(*question)["counting"] for question in questions)

    caplog.set_level(logging.WARNING)
    running = threading.Thread(target=run, daemon=True)
    with serve_process(*command) as first:
        running.start()
        wait_until((tmp_path / "stopped").exists, first)
        caplog.clear()
        first.kill()
    (tmp_path / "hold").unlink()
    assert len(record.scored()) == 10
    wait_until(lambda: "does not answer" in caplog.text)
    with serve_process(*command) as second:
        wait_until(lambda: not running.is_alive(), second)
    for (pixels, _, metadata), found in zip(questions, scores, strict=True):
        torch.testing.assert_close(found, expected(pixels, metadata))
    assert sorted(record.scored()) == sorted(prompt for _, prompts, _ in questions for prompt in prompts)
    assert "is back" in caplog.text


def test_a_server_that_stays_away_is_given_up(counting, caplog):
    with served(counting) as url:
        mixture = RewardMixture([RemoteReward(url, "counting", patience=0.3)], {"counting": 1.0})
        mixture.to(CPU)
    with pytest.raises(RewardGone, match=f"'counting' at {url} has scored nothing for 0.3 s .*refused") as caught:
        mixture.score(*batch(2))
    assert isinstance(caught.value, RewardError) and "prompt" not in str(caught.value)
    assert caplog.text.count("does not answer") == 1  # once an outage, also when it stays


def test_a_server_that_scores_nothing_is_given_up_too(counting):
    (counting.folder / "hold").touch()
    with served(counting) as url, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(connected(url, patience=0.2).score, images(1), ["stop here"], [{"n": 0}])
        try:
            with pytest.raises(RewardGone, match="it answers, but finishes no image"):
                asked.result(timeout=30)
        finally:
            (counting.folder / "hold").unlink()  # else what still waits would wait for minutes


def test_a_slow_server_that_gets_on_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("rtdmd_lightning.rewards.serving.http_server.HOLD_SECONDS", 0.1)
    slow = CountingReward(str(tmp_path), seconds=0.5)
    pixels, prompts, metadata = batch(8)
    with served(slow, batch_size=1) as url:
        scores = connected(url, patience=3.0).score(pixels, prompts, metadata)
    torch.testing.assert_close(scores, expected(pixels, metadata))


def test_a_full_server_is_tried_again(counting):
    (counting.folder / "hold").touch()
    with served(counting, batch_size=1, max_waiting=1) as url, ThreadPoolExecutor(1) as pool:
        remote = connected(url, images_per_request=1)
        prompts = ["stop here", "a", "b", "c"]
        running = pool.submit(remote.score, images(4), prompts, [{"n": 0}] * 4)
        wait_until((counting.folder / "stopped").exists)
        with pytest.raises(RewardGone, match="too many images wait"):
            impatient = connected(url, patience=0.1)
            wait_until(lambda: impatient._exchange("GET", "/health", None)[1]["waiting"] == 1)
            impatient.score(images(1), ["d"], [{"n": 0}])
        (counting.folder / "hold").unlink()
        assert running.result(timeout=60).shape == (4,)
    assert counting.scored() == prompts


def test_what_the_reward_raises_is_raised_here_and_names_the_prompt(counting):
    pixels, prompts, metadata = batch(3)
    with served(counting) as url:
        mixture = RewardMixture([connected(url)], {"counting": 1.0})
        with pytest.raises(RewardError, match=r"'counting' failed on the prompt 'broken': .*KeyError"):
            mixture.score(pixels, [prompts[0], "broken", prompts[2]], metadata)
        with pytest.raises(RewardError, match="take another prompt") as caught:
            mixture.score(pixels, [*prompts[:2], "refused"], metadata)
        assert isinstance(caught.value.__cause__, UserError)
        torch.testing.assert_close(mixture.score(pixels, prompts, metadata)["counting"], expected(pixels, metadata))


def test_a_score_that_is_no_number_travels_too(counting):
    pixels, prompts, _ = batch(2)
    with served(counting) as url:
        mixture = RewardMixture([connected(url)], {"counting": 1.0})
        with pytest.raises(RewardError, match="'counting' returned nan for the prompt 'prompt 1'"):
            mixture.score(pixels, prompts, [{"n": 0}, {"n": math.nan}])


def test_the_token(counting, monkeypatch, tmp_path):
    """From the environment, or from a file; without the right one nothing is told or scored."""
    (tmp_path / "token").write_text("s3cret\n")
    with served(counting, token="s3cret") as url:
        for wrong in (None, "s3cre", "S3cret"):
            monkeypatch.delenv("RTDMD_REWARD_TOKEN", raising=False)
            if wrong is not None:
                monkeypatch.setenv("RTDMD_REWARD_TOKEN", wrong)
            with pytest.raises(UserError, match="refused a request: the token is missing or wrong"):
                connected(url)
        by_file = connected(url, token_file=tmp_path / "token")
        monkeypatch.setenv("RTDMD_REWARD_TOKEN", "s3cret")
        for remote in (by_file, connected(url)):
            assert remote.score(*batch(1)).shape == (1,)
        by_file._token = None
        with pytest.raises(UserError, match="token"):
            by_file.score(*batch(1))
    assert len(counting.scored()) == 2


def test_a_request_that_is_too_large_is_refused_and_the_server_lives(counting):
    pixels, prompts, metadata = images(2, size=600), ["a", "b"], [{"n": 0}] * 2  # noise: a megabyte each
    with served(counting, max_bytes=2_000_000) as url:
        with pytest.raises(UserError, match=r"a request of \d+ bytes is larger than 2000000.*images_per_request"):
            connected(url).score(pixels, prompts, metadata)
        assert connected(url, images_per_request=1).score(pixels, prompts, metadata).shape == (2,)


def test_another_reward_at_that_address_is_told(counting):
    with served(counting) as url:
        with pytest.raises(UserError, match="serves the reward 'counting', not 'hpsv3'"):
            connected(url, "hpsv3")
        swapped = connected(url)
        swapped.name = "ocr"
        with pytest.raises(UserError, match="this is counting, not ocr"):
            swapped.score(*batch(1))


def test_evaluation_reports_it_on_the_rewards_own_scale(counting, tmp_path):
    """Which only the server knows."""
    counting.reported_scale = 10.0
    task = ImageTask(0, {"prompt": "a", "n": 2}, tmp_path / "image.png")
    write_image(torch.full((3, 4, 4), 0.2), task.path)
    with served(counting) as url:
        scoring = ScoreImages("scores", [[task]], RemoteReward(url, "counting"))
        scoring.on_predict_start()
        scoring.predict_step(0)
    assert scoring.table.scores.tolist() == pytest.approx([22])


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://host",
        "http://",
        "http://h:port",
        "http://h:70000",
        "http://me:word@host",
        "http://h/?a=b",
    ],
)
def test_a_wrong_address_is_told_before_anything_is_asked(url):
    with pytest.raises(UserError, match="http://host:port"):
        RemoteReward(url, "hpsv3")


def test_images_that_are_not_finite_are_told_and_not_sent(counting):
    pixels, prompts, metadata = batch(2)
    pixels[1, 0, 0, 0] = math.nan
    with (
        served(counting) as url,
        pytest.raises(UserError, match="counting: the image of the prompt 'prompt 1' has NaN"),
    ):
        connected(url).score(pixels, prompts, metadata)
    assert not (counting.folder / "scored").exists()


def test_a_proxys_path_stands_before_every_question(counting, monkeypatch):
    """As of a proxy that serves several rewards on one port; a slash at its end makes no difference."""
    asked: list[str] = []
    request = http.client.HTTPConnection.request

    def proxied(self, method, path, body=None, headers=None):
        asked.append(path)
        request(self, method, path.removeprefix("/rewards/counting"), body, headers or {})

    monkeypatch.setattr(http.client.HTTPConnection, "request", proxied)
    pixels, prompts, metadata = batch(1)
    with served(counting) as url:
        for end in ("", "/"):
            scores = connected(f"{url}/rewards/counting{end}").score(pixels, prompts, metadata)
            torch.testing.assert_close(scores, expected(pixels, metadata))
    assert len(asked) >= 6 and all(
        path.startswith(("/rewards/counting/scores/", "/rewards/counting/health")) for path in asked
    )


def test_metadata_that_json_cannot_hold_are_told(counting):
    with served(counting) as url, pytest.raises(UserError, match=r"counting: metadata .* must be JSON"):
        connected(url).score(images(1), ["a"], [{"n": {1, 2}}])


def test_the_readmes_yaml():
    """And that what a config makes can be copied for another process and needs no server yet."""
    readme = (REPOSITORY / "rtdmd_lightning" / "rewards" / "README.md").read_text()
    (block,) = [part.partition("```")[0] for part in readme.split("```yaml\n") if "RemoteReward" in part]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(RewardMixture, "mixture")
    mixture = copy.deepcopy(parser.instantiate(parser.parse_string(block)).mixture)
    remote = mixture.rewards["hpsv3"]
    assert isinstance(remote, RemoteReward) and remote.differentiable is False


def test_every_connection_of_a_run_is_closed(counting):
    with served(counting) as url:
        remote = connected(url)
        before = threading.active_count()
        for step in range(5):
            remote.score(*batch(2, step))
        wait_until(lambda: threading.active_count() <= before)
