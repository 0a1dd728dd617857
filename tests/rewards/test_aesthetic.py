"""The aesthetic head on a tiny CLIP, and its published layout."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from rtdmd_lightning.rewards.aesthetic import HEAD_FILENAME, AestheticHead, AestheticReward
from rtdmd_lightning.utils.errors import UserError
from tests.support.scorers import assert_autocast_changes_nothing, assert_gradient_is_right, pictures
from tests.support.tiny_clip import JOINT, PROMPTS, package_image_embeddings, save_tiny_clip

CPU = torch.device("cpu")
NO_METADATA: list[dict] = [{}, {}, {}]
# LAION's file: Linear layers at these places of a Sequential, dropout between them.
PUBLISHED_SHAPES = {0: (1024, 768), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A CLIP folder and, beside its files, a head in the published file's layout."""
    folder = save_tiny_clip(tmp_path_factory.mktemp("aesthetic"))
    torch.manual_seed(1)
    state = {}
    for place, (rows, columns) in PUBLISHED_SHAPES.items():
        columns = JOINT if place == 0 else columns
        state[f"layers.{place}.weight"] = torch.randn(rows, columns) * (3 / columns) ** 0.5
        state[f"layers.{place}.bias"] = torch.randn(rows)
    torch.save(state, folder / HEAD_FILENAME)
    return folder


def loaded(folder, **kwargs) -> AestheticReward:
    reward = AestheticReward(**({"weights": str(folder), "clip": str(folder)} | kwargs))
    reward.to(CPU)
    return reward


def package_score(folder, images) -> torch.Tensor:
    """By PIL and the processor, then a chain of matrix products: there is nothing between the layers."""
    embedding = package_image_embeddings(folder, images)
    values = embedding / embedding.norm(dim=-1, keepdim=True)
    state = torch.load(folder / HEAD_FILENAME, weights_only=True)
    for place in PUBLISHED_SHAPES:
        values = values @ state[f"layers.{place}.weight"].T + state[f"layers.{place}.bias"]
    return values[:, 0]


@pytest.mark.parametrize("size", [32, (60, 96)])
def test_the_number_is_the_packages(folder, size):
    images = pictures(3, size)
    expected = package_score(folder, images)
    assert expected.std() > 0.1
    score = loaded(folder).score(images, PROMPTS, NO_METADATA)
    torch.testing.assert_close(score, expected, rtol=1e-3, atol=1e-3)


def test_gradients_reach_the_pixels(folder):
    reward = loaded(folder)
    for network in reward.networks():
        network.double()
    assert_gradient_is_right(reward, pictures(3, (40, 36)), PROMPTS)


def test_autocast_outside_does_not_change_the_score(folder):
    assert_autocast_changes_nothing(loaded(folder), PROMPTS)


def test_the_embedding_has_unit_norm(folder, tmp_path):
    """A head fed with longer embeddings would give another mark."""
    other = save_tiny_clip(tmp_path)
    state = load_file(other / "model.safetensors")
    state["visual_projection.weight"] *= 7
    save_file(state, other / "model.safetensors", metadata={"format": "pt"})
    images = pictures(3)
    score, expected = (
        reward.score(images, PROMPTS, NO_METADATA) for reward in (loaded(folder, clip=str(other)), loaded(folder))
    )
    torch.testing.assert_close(score, expected)


def test_the_head_has_the_published_keys_and_shapes():
    expected = {f"layers.{place}.weight": shape for place, shape in PUBLISHED_SHAPES.items()}
    expected |= {f"layers.{place}.bias": shape[:1] for place, shape in PUBLISHED_SHAPES.items()}
    assert {key: tuple(value.shape) for key, value in AestheticHead().state_dict().items()} == expected


def test_laions_own_file_may_be_named(folder, tmp_path):
    path = tmp_path / "sac+logos+ava1-l14-linearMSE.pth"
    path.write_bytes((folder / HEAD_FILENAME).read_bytes())
    images = pictures(3)
    score = loaded(folder, weights=str(path)).score(images, PROMPTS, NO_METADATA)
    assert torch.equal(score, loaded(folder).score(images, PROMPTS, NO_METADATA))


def test_a_head_for_another_clip_is_refused(folder, tmp_path):
    path = tmp_path / "head.pth"
    torch.save(AestheticHead(JOINT + 1).state_dict(), path)
    with pytest.raises(
        UserError, match=r"aesthetic: .*layers\.0\.weight has the shape \(1024, 25\), wanted \(1024, 24\)"
    ):
        loaded(folder, weights=str(path))
