"""Trials of the reward server: it is killed and started again under a client, and sent what nobody should send."""

import contextlib
import http.client
import signal
import socket
import threading
import time
from pathlib import Path
from random import Random

import torch

from rtdmd_lightning.rewards.remote import RemoteReward
from tests.campaign.processes import FORKS, free_port
from tests.campaign.runs import Broken
from tests.support.tiny_rtdmd import Redness

REQUESTS, IMAGES = 12, 16
REWARD = "tests.support.tiny_rtdmd.Redness"


def serve(port: int) -> None:
    """In the child."""
    import os
    import sys

    from rtdmd_lightning.serve import serve

    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    sys.exit(serve(REWARD, port=port, device="cpu"))


def start(port: int):
    process = FORKS.Process(target=serve, args=(port,), daemon=True)
    process.start()
    return process


def killed(folder: Path, random: Random) -> str:
    """The server dies again and again while a client scores: no score is lost, and none is another image's."""
    port, kills = free_port(), 0
    server, finished, found = start(port), threading.Event(), []
    generator = torch.Generator().manual_seed(random.randrange(2**31))
    batches = [torch.randint(256, (IMAGES, 3, 64, 64), generator=generator) / 255 for _ in range(REQUESTS)]
    prompts = [str(index) for index in range(IMAGES)]

    def score() -> None:
        with contextlib.suppress(Exception):
            reward = RemoteReward(f"http://127.0.0.1:{port}", "redness", patience=60, images_per_request=3)
            reward.to(torch.device("cpu"))
            for batch in batches:
                found.append(reward.score(batch, prompts, [{}] * IMAGES))
                time.sleep(0.2)
        finished.set()

    threading.Thread(target=score, daemon=True).start()
    while not finished.wait(random.uniform(0.2, 1.5)):
        if kills < 5:
            server.kill()
            server.join()
            server, kills = start(port), kills + 1
    server.kill()
    server.join()
    expected = [Redness().score(batch, prompts, [{}] * IMAGES) for batch in batches]
    if len(found) != REQUESTS or not torch.allclose(torch.cat(found), torch.cat(expected), atol=1e-6):
        raise Broken(f"{len(found)} of {REQUESTS} batches came back, or with other scores")
    return f"{kills} kills, {REQUESTS * IMAGES} images"


def nonsense(folder: Path, random: Random) -> str:
    """Random bytes, lengths and paths: every request is answered with an error of the client's, and the server stays."""
    port = free_port()
    server = start(port)
    _wait_until_it_answers(port)
    for _ in range(200):
        body = random.randbytes(random.choice((0, 1, 100, 10_000)))
        path = random.choice(
            ("/scores/" + random.randbytes(16).hex(), "/scores/..", "/", "/" + random.randbytes(4).hex())
        )
        length = random.choice((str(len(body)), "9" * random.randint(1, 30), "-1", "x"))
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
            connection.putrequest(random.choice(("PUT", "GET")), path)
            connection.putheader("Content-Length", length)
            connection.endheaders(body)
            with contextlib.suppress(OSError):  # it may have its answer already
                connection.sock.shutdown(socket.SHUT_WR)  # a client that announces more than it sends has gone
            with contextlib.suppress(http.client.RemoteDisconnected, ConnectionResetError):
                status = connection.getresponse().status
                if not 400 <= status < 500:
                    raise Broken(f"{path}, {length} bytes announced: {status}")
    _wait_until_it_answers(port)
    server.terminate()
    server.join()
    if server.exitcode != -signal.SIGTERM:
        raise Broken(f"the server ended with {server.exitcode}")
    return "200 requests"


def _wait_until_it_answers(port: int) -> None:
    reward = RemoteReward(f"http://127.0.0.1:{port}", "redness", patience=60)
    reward.to(torch.device("cpu"))
