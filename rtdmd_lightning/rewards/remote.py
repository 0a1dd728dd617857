"""A reward that another process or machine scores: the client of `rewards.serve`."""

import contextlib
import http.client
import json
import logging
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from rtdmd_lightning.rewards.base import Reward
from rtdmd_lightning.rewards.mixture import RewardGone
from rtdmd_lightning.rewards.serving.wire import HOLD_SECONDS, encode, read_token
from rtdmd_lightning.utils.errors import UserError

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds between attempts, doubled each time
ANSWERED, REFUSED = (200, 202, 404, 422), (400, 401, 409, 411, 413)
TOO_LARGE = "; lower images_per_request, or serve with more --max_megabytes or --max_megapixels"

log = logging.getLogger(__name__)


class RemoteRewardError(RuntimeError):
    """The reward raised, over there; the message is what it said."""


@dataclass
class Watch:
    """Since when the server has shown no progress, by the number of images it has scored."""

    since: float = field(default_factory=time.monotonic)
    scored: int | None = None

    def saw(self, scored: int) -> None:
        if scored != self.scored:
            self.since, self.scored = time.monotonic(), scored


class RemoteReward(Reward):
    """Looks like the reward it is named after, and asks a server for the scores.

    Images travel as 8-bit PNGs: overshoot beyond [0, 1] is cut off and levels are rounded, so a score can differ a little from
    the same reward's in this process. No gradient comes back. A server that is gone is waited for; what it had not answered is
    sent again, and what it had is not scored twice.

    Args:
        url: of the server, `http://host:port`, or `https://` of a proxy in front of it.
        name: of the served reward, as the server tells it; keys tables and weights.
        timeout: seconds to wait for one answer before the connection counts as lost.
        patience: seconds without an answer or an image scored, loading after a restart included, until it is given up.
        images_per_request: images in one request; a batch goes out as several, which the server batches as it likes.
        token_file: holds the server's token; without it the environment variable RTDMD_REWARD_TOKEN does.

    Scoring raises RewardGone when the patience is at an end, UserError for what the server refuses, RemoteRewardError (or
    UserError, where it was one) for what the reward itself raised.
    """

    differentiable = False

    def __init__(
        self,
        url: str,
        name: str,
        timeout: float = 30.0,
        patience: float = 600.0,
        images_per_request: int = 8,
        token_file: Path | None = None,
    ) -> None:
        if timeout <= HOLD_SECONDS or patience < 0 or images_per_request < 1:
            raise UserError(f"{name}: timeout > {HOLD_SECONDS:g}, patience >= 0 and images_per_request >= 1 are wanted")
        check_url(url)
        self.url, self.name = url, name
        self.timeout, self.patience = timeout, patience
        self.images_per_request = images_per_request
        self.token_file = token_file

    def load(self) -> None:
        """Wait until the server is ready, and learn the scale of tables. Raises UserError where it serves another reward."""
        self._token = read_token(self.token_file)
        watch = Watch()
        while True:
            _, health = self._ask("GET", "/health", None, watch)
            if "reward" not in health:
                raise UserError(f"{self.name}: what listens at {self.url} is no rtdmd_lightning.serve")
            if health["reward"] != self.name:
                raise UserError(f"{self.url} serves the reward {health['reward']!r}, not {self.name!r}")
            if health["ready"]:
                break
            self._be_patient("it is still loading", watch)
            time.sleep(HOLD_SECONDS)
        self.reported_scale = health["reported_scale"]
        rank_zero_info(f"{self.name}: scored by {self.url}, from 8-bit PNGs of the images")

    def score(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        watch, sent = Watch(), []
        for start in range(0, len(prompts), self.images_per_request):
            part = slice(start, start + self.images_per_request)
            key, body = uuid.uuid4().hex, encode(self.name, images[part], prompts[part], metadata[part])
            self._ask("PUT", f"/scores/{key}", body, watch)  # taken note of; scored while the next part is encoded
            sent.append((key, body))
        scores = [score for key, body in sent for score in self._scores(key, body, watch)]
        return torch.tensor(scores, dtype=torch.float32, device=images.device)

    def _scores(self, key: str, body: bytes, watch: Watch) -> list[float]:
        """Ask until they are there; hand the request in again where a new server has never heard of it."""
        while True:
            status, answer = self._ask("GET", f"/scores/{key}", None, watch)
            if status == 200:
                return answer["scores"]
            if status == 422:
                raise (UserError if answer["user_error"] else RemoteRewardError)(answer["error"])
            if status == 404:
                self._ask("PUT", f"/scores/{key}", body, watch)
                time.sleep(FIRST_PAUSE)
            self._be_patient("it answers, but finishes no image", watch)

    def _ask(self, method: str, path: str, body: bytes | None, watch: Watch) -> tuple[int, dict]:
        """Status and answer of a server that may be gone or busy for a while. Raises RewardGone, and UserError on a refusal."""
        pause, lost = FIRST_PAUSE, False
        while True:
            try:
                status, answer = self._exchange(method, path, body)
            except (OSError, http.client.HTTPException, json.JSONDecodeError, UnicodeDecodeError) as error:
                problem = f"{type(error).__name__}: {error}"
                if not lost:
                    log.warning("%s: %s does not answer (%s); waiting", self.name, self.url, problem)
                lost = True
            else:
                if status in REFUSED:
                    hint = TOO_LARGE if status == 413 else ""
                    raise UserError(f"{self.name}: {self.url} refused a request: {answer['error']}{hint}")
                if lost:
                    log.warning("%s: %s is back", self.name, self.url)
                    lost = False
                if "scored" in answer:
                    watch.saw(answer["scored"])
                if status in ANSWERED:
                    return status, answer
                problem = f"{status}: {answer}"
            self._be_patient(problem, watch)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _be_patient(self, problem: str, watch: Watch) -> None:
        if time.monotonic() - watch.since > self.patience:
            raise RewardGone(
                f"the reward {self.name!r} at {self.url} has scored nothing for {self.patience:g} s ({problem}); look after "
                "its `rtdmd serve`, or set a longer patience"
            )

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, dict]:
        """One request over a connection of its own; no proxy and no redirect, which would see the token."""
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        assert parts.hostname is not None
        headers = {"Content-Type": "application/json"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        with contextlib.closing(kind(parts.hostname, parts.port, timeout=self.timeout)) as connection:
            connection.request(method, parts.path.rstrip("/") + path, body, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())


def check_url(url: str) -> None:
    """Raises UserError for anything but scheme, host, port and perhaps a path."""
    try:
        parts = urlsplit(url)
        rest = (parts.port == 0, parts.username, parts.query, parts.fragment)  # a port that is no number raises
    except ValueError as error:
        raise UserError(f"the url of a remote reward is http://host:port, not {url}: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or any(rest):
        raise UserError(f"the url of a remote reward is http://host:port, not {url}")
