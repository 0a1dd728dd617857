"""Fixtures shared by all tests.

Torch is imported where it is used: with `pytest -n` the first process runs no test, and the others wait until it has started.
"""

import os
import shutil

os.environ["HF_HUB_OFFLINE"] = "1"  # tests are offline; a missing file must fail, not wait for a network
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"  # their servers are this machine
os.environ.pop("FORCE_COLOR", None)  # what is printed is compared
os.environ.pop("TTY_COMPATIBLE", None)
os.environ["OMP_NUM_THREADS"] = "1"  # torch's threads, here and in the processes that tests start

import pytest

from tests.support.pair import Pair

# Without these Chromium looks for Google's hosts; the sandbox does not start for root.
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]
SLOW_FIXTURES = {"pair", "process_group", "browser"}


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items):
    """Tests with one of these fixtures are `slow` without saying so; the others carry the mark."""
    for item in items:
        if SLOW_FIXTURES & set(item.fixturenames):
            item.add_marker("slow")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A random SD3 pipeline of the real classes, small enough to train in milliseconds."""
    from tests.support.tiny import save_tiny_pipeline

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
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, headless. It goes with the file: playwright keeps an event loop, in which no other can run."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium on this machine (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS, timeout=300_000)
        yield launched
        launched.close()
