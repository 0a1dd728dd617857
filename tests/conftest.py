"""Fixtures shared by all tests."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # tests are offline; a missing file must fail, not wait for a network
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"  # their servers are this machine
os.environ.pop("FORCE_COLOR", None)  # what is printed is compared
os.environ.pop("TTY_COMPATIBLE", None)

import pytest
import torch
import torch.distributed as dist

from tests.support.pair import Pair
from tests.support.tiny import save_tiny_pipeline

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A random SD3 pipeline of the real classes, small enough to train in milliseconds."""
    folder = tmp_path_factory.mktemp("pipelines") / "tiny"
    save_tiny_pipeline(folder)
    return folder


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """Two processes for all the two-process runs of a session."""
    processes = Pair(tmp_path_factory.mktemp("pair") / "log")
    yield processes
    processes.close()


@pytest.fixture
def process_group(tmp_path):
    """This process alone as a gloo group, as a trainer would have made it."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()
