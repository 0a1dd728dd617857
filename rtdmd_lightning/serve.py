"""A reward in a process or on a machine of its own, over HTTP, for `rewards.remote.RemoteReward`:

`rtdmd serve --reward hpsv3 --port 8000`
"""

if __name__ == "__main__":  # neither a help text nor a mistyped option waits for the imports below
    from rtdmd_lightning.cli import before_imports

    before_imports("serve")

import contextlib
import ipaddress
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from rtdmd_lightning.rewards.base import Reward
from rtdmd_lightning.rewards.registry import check_reward, reward_class
from rtdmd_lightning.rewards.serving.http_server import RewardServer
from rtdmd_lightning.rewards.serving.scoring_queue import ScoringQueue, score_forever
from rtdmd_lightning.rewards.serving.wire import TOKEN_VARIABLE, read_token
from rtdmd_lightning.utils.command_line import run_command
from rtdmd_lightning.utils.configuration import refusals_of_libraries
from rtdmd_lightning.utils.errors import UserError, readable_errors
from rtdmd_lightning.utils.processes import process_device


def serve(
    reward: str,
    port: int = 8000,
    host: str = "127.0.0.1",
    options: dict[str, Any] | None = None,
    device: str | None = None,
    batch_size: int = 8,
    max_megabytes: int = 256,
    max_megapixels: int = 256,
    max_waiting: int = 1024,
    token_file: Path | None = None,
) -> None:
    """Score what clients send, until interrupted. Without a token only this machine can reach it.

    Args:
        reward: a fixed name (hpsv3, geneval, ...) or the import path of a class of your own.
        port: to listen on; 0 takes a free one.
        host: address to listen on. Any but a loopback address wants a token.
        options: the reward's own arguments, e.g. '{"weights": "/data/hpsv3"}' or --options.weights /data/hpsv3.
        device: to score on; by default an accelerator where there is one.
        batch_size: images scored at a time, from however many requests.
        max_megabytes: a larger request is refused.
        max_megapixels: of all images that wait (3 bytes of memory a pixel), 2^20 pixels each; a request that holds more is
            refused. It is counted before a picture is unpacked.
        max_waiting: images that may wait; a client that finds the queue full tries again later.
        token_file: holds the token; without it the environment variable RTDMD_REWARD_TOKEN does.
    """
    if min(batch_size, max_megabytes, max_megapixels, max_waiting) < 1:
        raise UserError("--batch_size, --max_megabytes, --max_megapixels and --max_waiting must be at least 1")
    if not 0 <= port < 2**16:
        raise UserError(f"--port must lie between 0 and 65535, not {port}")
    place, served = process_device(device), build_reward(reward, options or {})
    queue = ScoringQueue(batch_size, max_waiting, max_megapixels * 2**20)
    token = required_token(host, token_file)
    server = RewardServer((host, port), served, queue, token, max_megabytes * 2**20)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"{served.name}: listening on {address_of(server)}, loading", flush=True)
    # Scoring has the main thread: what cannot be loaded ends the process, and so does Ctrl-C.
    with contextlib.suppress(KeyboardInterrupt):
        served.to(place)
        server.ready = True
        print(f"{served.name}: ready on {place}", flush=True)
        score_forever(served, queue, place)


def build_reward(name: str, options: dict[str, Any]) -> Reward:
    """The reward of that name or import path, its arguments checked against their types as in a config."""
    parser = ArgumentParser(exit_on_error=False)
    with refusals_of_libraries():
        parser.add_class_arguments(reward_class(name), "options")
        reward = parser.instantiate(parser.parse_object({"options": options} if options else {})).options
    check_reward(reward)
    return reward


def required_token(host: str, token_file: Path | None) -> str | None:
    """Raises UserError where there is none and another machine could connect."""
    token = read_token(token_file)
    if token is None and not is_loopback(host):
        raise UserError(
            f"listening on {host!r} lets other machines in: put a token into ${TOKEN_VARIABLE} or --token_file, here and "
            "where the client runs"
        )
    return token


def is_loopback(host: str) -> bool:
    """Can only this machine connect? The empty host and 0.0.0.0 are all addresses."""
    try:
        found = socket.getaddrinfo(host or None, 0, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise UserError(f"there is no host {host!r} to listen on: {error}") from error
    return all(ipaddress.ip_address(address[0]).is_loopback for *_, address in found)


def address_of(server: RewardServer) -> str:
    host, port = str(server.server_address[0]), server.server_port
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


if __name__ == "__main__":
    with readable_errors():
        run_command(serve, sys.argv[1:])
