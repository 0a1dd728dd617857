"""The command that serves a reward: who may connect, its arguments, and what it refuses to start with."""

import http.client
import json
import pickle
import urllib.parse

import pytest
import torch

from rtdmd_lightning.rewards.clipscore import ClipScoreReward
from rtdmd_lightning.rewards.serving.http_server import RewardServer
from rtdmd_lightning.rewards.serving.scoring_queue import ScoringQueue
from rtdmd_lightning.rewards.serving.wire import encode
from rtdmd_lightning.rewards.shapes import ShapesReward
from rtdmd_lightning.serve import build_reward, is_loopback, required_token, serve
from rtdmd_lightning.utils.errors import UserError
from tests.support.counting import CountingReward, serve_process, served, wait_until

KEY = "0123456789abcdef" * 2


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv("RTDMD_REWARD_TOKEN", raising=False)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("127.0.0.2", True),
        ("0.0.0.0", False),
        ("", False),
        ("10.0.0.1", False),
    ],
)
def test_only_loopback_goes_without_a_token(host, loopback, monkeypatch):
    assert is_loopback(host) == loopback
    if loopback:
        assert required_token(host, None) is None
    else:
        with pytest.raises(UserError, match="put a token into"):
            serve("shapes", host=host, port=0)
    monkeypatch.setenv("RTDMD_REWARD_TOKEN", "s3cret")
    assert required_token(host, None) == "s3cret"


@pytest.mark.parametrize("text", ["", "two words", "tökén", "two\nlines"])
def test_an_unusable_token_file_is_told(text, tmp_path):
    (tmp_path / "token").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="one line of ASCII"):
        required_token("127.0.0.1", tmp_path / "token")
    with pytest.raises(UserError, match="cannot be read"):
        required_token("127.0.0.1", tmp_path / "none")


def test_a_reward_by_name_or_import_path_with_its_arguments(tmp_path):
    assert build_reward("shapes", {"strict": True}).name == "shapes_strict"
    clip = build_reward("clipscore", {"weights": "checkpoints/tiny-clip"})
    assert isinstance(clip, ClipScoreReward) and clip.weights == "checkpoints/tiny-clip"
    own = build_reward("tests.support.counting.CountingReward", {"folder": str(tmp_path)})
    assert isinstance(own, CountingReward) and own.folder == tmp_path


def test_a_port_that_is_taken_is_told():
    queue = ScoringQueue(1, 1, 1)
    with (
        RewardServer(("127.0.0.1", 0), ShapesReward(), queue, None, 1) as server,
        pytest.raises(UserError, match=f"cannot listen on 127.0.0.1, port {server.server_port}"),
    ):
        serve("shapes", port=server.server_port)


@pytest.mark.slow
def test_the_command_tells_what_is_wrong_in_one_sentence():
    """Weights that cannot be found end the process, which had begun to listen; so that nobody waits for it."""
    with serve_process("--reward", "clipscore", "--options.weights", "/nowhere/clip", "--port", "0") as process:
        _, errors = process.communicate(timeout=600)
    assert process.returncode == 2
    assert errors.startswith("error: clipscore: the weights /nowhere/clip do not exist") and errors.count("\n") == 1


def ask(url: str, method: str, path: str, body: bytes | None = None, headers: dict | None = None) -> tuple[int, dict]:
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=120)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_health_before_and_after_loading():
    queue = ScoringQueue(1, 1, 1)
    with RewardServer(("127.0.0.1", 0), ShapesReward(), queue, None, 1) as server:
        told = {"reward": "shapes", "reported_scale": 1.0, "ready": False, "scored": 0, "waiting": 0}
        assert server.health() == told
    with served(ShapesReward()) as url:
        assert ask(url, "GET", "/health") == (200, told | {"ready": True})


@pytest.mark.parametrize("port", [-1, 65536, 10**9])
def test_a_port_that_is_none_is_told(port):
    with pytest.raises(UserError, match="--port must lie between 0 and 65535"):
        serve("shapes", port=port)


def test_pictures_that_would_unfold_into_gigabytes_are_refused_by_their_headers(tmp_path):
    reward = CountingReward(str(tmp_path))
    small = encode("counting", torch.zeros(1, 3, 40, 50), ["a"], [{"n": 0}])
    large = encode("counting", torch.zeros(2, 3, 40, 50), ["a", "b"], [{"n": 0}] * 2)
    with served(reward, max_pixels=3999) as url:
        status, answer = ask(url, "PUT", f"/scores/{KEY}", large)
        assert status == 413 and "4000 pixels is larger than 3999" in answer["error"]
        assert ask(url, "GET", f"/scores/{KEY}")[0] == 404
        assert ask(url, "PUT", f"/scores/{KEY}", small)[0] == 202


def test_requests_that_make_no_sense_are_refused(tmp_path):
    good = encode("counting", torch.rand(1, 3, 4, 4), ["a"], [{"n": 0}])
    reward = CountingReward(str(tmp_path))
    with served(reward, max_bytes=1000) as url:
        for path in ("/", "/scores/1", f"/scores/{KEY}/x", "/scores/../../etc/passwd"):
            assert ask(url, "GET", path)[0] == 400
            assert ask(url, "PUT", path, good)[0] == 400
        assert ask(url, "GET", f"/scores/{KEY}")[0] == 404
        assert ask(url, "PUT", f"/scores/{KEY}", pickle.dumps([1]))[0] == 400
        assert ask(url, "PUT", f"/scores/{KEY}", good.replace(b"counting", b"hpsv3"))[0] == 409
        assert ask(url, "PUT", f"/scores/{KEY}", good, {"Content-Length": "-1"})[0] == 411
        assert ask(url, "PUT", f"/scores/{KEY}", iter([good]), {"Transfer-Encoding": "chunked"})[0] == 411
        assert ask(url, "PUT", f"/scores/{KEY}", b" " * 1001)[0] == 413
        assert ask(url, "PUT", f"/scores/{KEY}", good, {"Content-Length": "9" * 5000})[0] == 400
        assert ask(url, "PUT", f"/scores/{KEY}", json.dumps(json.loads(good) | {"images": ["é"]}).encode())[0] == 400
        assert ask(url, "GET", f"/scores/{KEY}")[0] == 404 and not (tmp_path / "scored").exists()
        assert ask(url, "PUT", f"/scores/{KEY}", good)[0] == 202
        wait_until(lambda: ask(url, "GET", f"/scores/{KEY}")[0] == 200)
