"""Images, prompts and metadata over the wire: a round trip, and everything that is no request."""

import base64
import io
import json

import pytest
import torch
from PIL import Image, PngImagePlugin

from rtdmd_lightning.rewards.serving.wire import decode, encode
from rtdmd_lightning.utils.errors import UserError


def test_a_round_trip():
    """Grey levels to the last bit; overshoot is cut off; letters of any alphabet; nested metadata."""
    images = 1.4 * torch.rand(3, 3, 5, 7, generator=torch.Generator().manual_seed(0)) - 0.2
    prompts = ['a "sign"', "красный круг", "🐈"]
    metadata = [{"include": [{"class": "circle", "count": 2, "position": ["left of", 0]}]}, {}, {"n": 0.1}]
    request = decode(encode("shapes", images, prompts, metadata))
    decoded = torch.stack(request.images())
    assert decoded.dtype == torch.uint8 and request.pixels == 3 * 5 * 7
    assert torch.equal(decoded, (images.clamp(0, 1) * 255).round().byte())
    assert (request.reward, request.prompts, request.metadata) == ("shapes", prompts, metadata)


def picture(width: int = 4, height: int = 4, kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, format=kind)
    return base64.b64encode(buffer.getvalue()).decode()


def body(**changes) -> bytes:
    fields = {"reward": "shapes", "images": [picture()], "prompts": ["a"], "metadata": [{}]} | changes
    return json.dumps(fields).encode()


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (b"\x80\x05]\x94.", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "must be an object"),
        (body(more=1), "must be an object"),
        (body(prompts="a"), "prompts must be a list of str"),
        (body(prompts=[1]), "prompts must be a list of str"),
        (body(metadata=[[]]), "metadata must be a list of dict"),
        (body(prompts=["a", "b"]), "of one length"),
        (body(images=[], prompts=[], metadata=[]), "at least 1"),
        (body(images=["?"]), "not a base64 PNG"),
        (body(images=[base64.b64encode(b"\x89PNG\r\n\x1a\n and no more").decode()]), "not a base64 PNG"),
        (body(images=[picture(40, 40)[:60]]), "not a base64 PNG"),
        (body(images=[picture(kind="JPEG")]), "not a base64 PNG"),
        (body(images=["é" * 8]), "not a base64 PNG"),
        (body(prompts=["\ud800"]), "half a letter"),
        (b"1" * 5000, "not JSON"),
        (body(images=[picture(), picture(5)], prompts=["a", "b"], metadata=[{}, {}]), "of one size"),
    ],
)
def test_what_is_no_request_is_told(wrong, match):
    with pytest.raises(UserError, match=match):
        decode(wrong).images()


def test_a_body_of_the_test_itself_is_right():
    assert [image.shape for image in decode(body()).images()] == [(3, 4, 4)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_image_that_is_not_finite_is_refused_by_the_client(bad):
    """A PNG would show it as black or white, and it would be scored as that."""
    images = torch.rand(2, 3, 4, 4)
    images[1, 0, 2, 2] = bad
    with pytest.raises(UserError, match="shapes: the image of the prompt 'b' has NaN"):
        encode("shapes", images, ["a", "b"], [{}, {}])


def test_a_request_is_measured_before_a_picture_is_unpacked(monkeypatch):
    asked = body(images=[picture(2000, 3000)] * 2, prompts=["a"] * 2, metadata=[{}] * 2)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("it was unpacked"))
    assert decode(asked).pixels == 12_000_000
    with pytest.raises(pytest.fail.Exception):
        decode(asked).images()
