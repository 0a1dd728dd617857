"""The HTTP side of a served reward.

    GET /health       reward, reported_scale, ready (are its weights loaded?), scored and waiting (images)
    PUT /scores/ID    hand in a request: 202; an ID that is known already is not scored again
    GET /scores/ID    200 with the scores, 202 for "not yet", 404 for an ID that this process never saw,
                      422 where the reward raised

Everything else is an object with `error`, a sentence: 400 malformed, 401 wrong token, 409 another reward, 411 and 413 on the
size of the body, 503 when too many images wait.
"""

import hmac
import json
import re
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from rtdmd_lightning.rewards.base import Reward
from rtdmd_lightning.rewards.serving.scoring_queue import ScoringQueue
from rtdmd_lightning.rewards.serving.wire import HOLD_SECONDS, decode
from rtdmd_lightning.utils.errors import UserError

CHUNK = 1 << 16
LENGTH_DIGITS = 18


class RewardServer(ThreadingHTTPServer):
    """Takes requests for one reward into a queue and hands out what became of them; it scores nothing itself.

    Args:
        address: host and port to listen on; port 0 takes a free one.
        token: what requests must carry, or None for nothing.
        max_bytes: of a request's body.

    Raises UserError where it cannot listen.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, address: tuple[str, int], reward: Reward, queue: ScoringQueue, token: str | None, max_bytes: int
    ) -> None:
        self.reward, self.queue, self.token, self.max_bytes = reward, queue, token, max_bytes
        self.ready = False
        try:
            self.address_family = socket.getaddrinfo(address[0] or None, address[1], flags=socket.AI_PASSIVE)[0][0]
            super().__init__(address, _Handler)
        except OSError as error:
            raise UserError(f"cannot listen on {address[0]}, port {address[1]}: {error}") from error

    def handle_error(self, request, client_address) -> None:
        """A client that went away is no news: it comes back and asks again."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    def health(self) -> dict:
        return {
            "reward": self.reward.name,
            "reported_scale": self.reward.reported_scale,
            "ready": self.ready,
            "scored": self.queue.scored,
            "waiting": self.queue.waiting,
        }


class _Handler(BaseHTTPRequestHandler):
    server: RewardServer
    timeout = 60  # seconds without a byte before a connection is dropped

    def do_GET(self) -> None:
        if not self._admitted():
            return
        if self.path == "/health":
            self._answer(200, self.server.health())
        elif (key := self._key()) is not None:
            self._answer_scores(key)

    def do_PUT(self) -> None:
        if not self._admitted() or (key := self._key()) is None or (body := self._body()) is None:
            return
        try:
            request = decode(body)
        except UserError as error:
            return self._refuse(400, str(error))
        if request.reward != self.server.reward.name:
            return self._refuse(409, f"this is {self.server.reward.name}, not {request.reward}")
        if request.pixels > (most := self.server.queue.max_pixels):
            return self._refuse(413, f"a request of {request.pixels} pixels is larger than {most}")
        try:
            taken = self.server.queue.submit(key, request)
        except UserError as error:
            return self._refuse(400, str(error))
        if not taken:
            return self._refuse(503, "too many images wait")
        self._answer(202, self.server.health())

    def _answer_scores(self, key: str) -> None:
        job = self.server.queue.job(key, HOLD_SECONDS)
        if job is None:
            self._refuse(404, f"no request {key}")
        elif job.failure is not None:
            self._answer(422, {"error": job.failure.told, "user_error": job.failure.user_error})
        elif job.done:
            self._answer(200, {"scores": job.scores})
        else:
            self._answer(202, self.server.health())

    def _admitted(self) -> bool:
        token = self.server.token
        given = self.headers.get("Authorization", "")
        if token is None or hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            return True
        self._drop_body()
        self._refuse(401, "the token is missing or wrong")
        return False

    def _key(self) -> str | None:
        found = re.fullmatch(r"/scores/([0-9a-f]{32})", self.path)
        if found is None:
            self._drop_body()
            self._refuse(400, "the path must be /health or /scores/ID with an ID of 32 hexadecimal digits")
            return None
        return found.group(1)

    def _body(self) -> bytes | None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self._refuse(411, "a Content-Length is wanted")
        elif len(length) > LENGTH_DIGITS:
            self._refuse(400, f"a Content-Length of {len(length)} digits is none")
        elif int(length) > self.server.max_bytes:
            self._drop_body()
            self._refuse(413, f"a request of {length} bytes is larger than {self.server.max_bytes}")
        else:
            body = self.rfile.read(int(length))
            return body if len(body) == int(length) else None  # else the client died on the way
        return None

    def _drop_body(self) -> None:
        """Read a refused body into nothing: a connection closed on a client that still sends loses the answer."""
        length = self.headers.get("Content-Length", "")
        known = length.isdecimal() and len(length) <= LENGTH_DIGITS
        left = min(int(length), 4 * self.server.max_bytes) if known else 0
        while left > 0 and (chunk := self.rfile.read(min(left, CHUNK))):
            left -= len(chunk)

    def _refuse(self, status: int, sentence: str) -> None:
        self._answer(status, {"error": sentence, "scored": self.server.queue.scored})

    def _answer(self, status: int, content: dict) -> None:
        body = json.dumps(content).encode()  # a score may be NaN: Python's JSON has it, and the client tells
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args) -> None:
        """Not a line for every request."""
