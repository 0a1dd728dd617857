"""Fixtures shared by all tests."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests are offline; a missing file must fail, not wait for a network

import pytest
import torch

from tests.pair import Pair
from tests.tiny import save_tiny_pipeline

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
