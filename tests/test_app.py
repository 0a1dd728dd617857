"""The page, in Debian's Chromium: a prompt is typed, pictures appear, and they are those of `sample`."""

import base64
import io
import socket
import sys

import pytest
import torch
from PIL import Image
from playwright.sync_api import expect
from torchvision.transforms.functional import pil_to_tensor

from rtdmd_lightning import app, sample
from rtdmd_lightning.evaluation.images import read_image
from rtdmd_lightning.playground import page as page_file
from rtdmd_lightning.playground import toy
from rtdmd_lightning.utils.errors import UserError

PROMPT = "a photo of two circles"
BYTES = """async image => {
    const bytes = new Uint8Array(await (await fetch(image.src)).arrayBuffer());
    return btoa(String.fromCharCode(...bytes));
}"""


@pytest.fixture(scope="module")
def address():
    """Where the command serves the toy world, in this process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_file.gr.Blocks, "block_thread", lambda page: served.append(page))
        app.main(["--device=cpu", f"--port={port}"])
    yield f"http://127.0.0.1:{port}"
    served[0].close()


@pytest.fixture
def page(browser, address):
    """The opened page; it must complain of nothing and ask for nothing but itself."""
    opened = browser.new_page(viewport={"width": 1280, "height": 800})
    opened.set_default_timeout(120_000)
    complaints, requests = [], []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto(address)
    yield opened
    assert complaints == []
    assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []
    opened.close()


def pictures(page) -> list[torch.Tensor]:
    """Of the four columns, once all are there."""
    found = page.locator(".picture img")
    expect(found).to_have_count(4)
    encoded = [image.evaluate(BYTES) for image in found.all()]
    return [pil_to_tensor(Image.open(io.BytesIO(base64.b64decode(one)))) for one in encoded]


def sampled(folder, *options: str) -> torch.Tensor:
    arguments = [f"--base={toy.BASE}", "--prompt", PROMPT, "--seed=5", f"--out={folder}", "--device=cpu"]
    backbone = '--backbone={"use_t5": false, "max_sequence_length": 1, "dtype": "float32"}'
    sample.main([*arguments, backbone, "--resolution=32", *options])
    return (read_image(folder / "000000.png") * 255).round().to(torch.uint8)


def test_a_prompt_is_drawn_in_four_columns_as_sample_draws_it(page, tmp_path):
    page.get_by_label("Prompt").fill(PROMPT)
    page.get_by_label("Seed").fill("5")
    page.get_by_role("button", name="Draw", exact=True).click()
    drawn = pictures(page)
    of_student = ["--steps=[1000,650,420,210]", "--eta=0.7"]
    expected = [
        sampled(tmp_path / "teacher", "--steps=28", "--schedule=pipeline", "--guidance_scale=3", "--eta=0"),
        sampled(tmp_path / "few", "--steps=4", "--schedule=pipeline", "--eta=0"),
        sampled(tmp_path / "stage 1", "--adapters", toy.ADAPTERS[0], *of_student),
        sampled(tmp_path / "stage 2", "--adapters", *toy.ADAPTERS, *of_student),
    ]
    for image, wanted in zip(drawn, expected, strict=True):
        assert torch.equal(image, wanted)
    assert len({image.numpy().tobytes() for image in drawn}) == 4


def test_what_cannot_be_drawn_is_told_on_the_page(page):
    page.get_by_label("Prompt").fill("a photo of a corgi")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("#told")).to_contain_text("does not know 'corgi'")
    expect(page.locator(".picture img")).to_have_count(0)
    page.get_by_label("Prompt").fill(PROMPT)
    page.get_by_label("Steps").fill("some")
    page.get_by_label("Steps").press("Enter")
    expect(page.locator("#told")).to_contain_text("steps must be a number, or a list")


def test_a_port_that_is_taken_is_told():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="--port"):
            app.main(["--device=cpu", f"--port={taken.getsockname()[1]}"])


def test_without_gradio_the_command_that_installs_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"pip install 'rtdmd-lightning\[app\]'"):
        app.main([])


def test_what_belongs_to_a_base_wants_one():
    with pytest.raises(UserError, match="--base"):
        app.main(["--adapters", "a.pt"])
