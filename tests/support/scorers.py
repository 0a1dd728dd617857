"""What the tests of several scorers share: pictures, and a finite-difference check of a score's gradient,
and the keys of published checkpoints."""

import json
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from rtdmd_lightning.rewards.base import Reward


def pictures(count: int, size: int | tuple[int, int] = 224, seed: int = 0) -> Tensor:
    """Smooth colour fields `[count, 3, H, W]` on whole grey levels, so that a PIL image and the tensor hold the same."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    size = (size, size) if isinstance(size, int) else size
    fields = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1)
    return (fields * 255).round() / 255


def to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())


def assert_gradient_is_right(reward: Reward, images: Tensor, prompts: list[str]) -> None:
    """The gradient along three random directions against central differences; the reward's networks must be float64."""
    metadata: list[dict] = [{} for _ in prompts]
    images = (0.3 + 0.4 * images).double().requires_grad_()  # clear of 0 and 1, where resized pixels are cut off
    score = reward.score(images, prompts, metadata)
    assert score.dtype == torch.float64
    (gradient,) = torch.autograd.grad(score.sum(), images)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        direction = torch.randn(images.shape, generator=generator, dtype=torch.float64)
        step = 2e-5 * direction
        with torch.no_grad():
            up, down = (reward.score(images + sign * step, prompts, metadata).sum() for sign in (1, -1))
        expected = (up - down) / 4e-5
        assert expected.abs() > 1e-5  # else the check would pass for a score that ignores the picture
        torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-5, atol=1e-9)


def assert_autocast_changes_nothing(reward: Reward, prompts: list[str]) -> None:
    images, metadata = pictures(len(prompts)), [{} for _ in prompts]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = reward.score(images, prompts, metadata)
    torch.testing.assert_close(inside, reward.score(images, prompts, metadata), rtol=0, atol=1e-6)


def assert_frozen(network: torch.nn.Module) -> None:
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def published_shapes(filename: str) -> dict[str, list[int]]:
    """Keys and shapes from a file of `facts/`: `keys` as they are, and those of each of `blocks` once for every number."""
    facts = json.loads((Path(__file__).parent / "facts" / filename).read_text(encoding="utf-8"))
    shapes = dict(facts["keys"])
    for block in facts["blocks"]:
        for number in range(block["count"]):
            shapes |= {f"{block['prefix']}.{number}.{key}": shape for key, shape in block["keys"].items()}
    return shapes
