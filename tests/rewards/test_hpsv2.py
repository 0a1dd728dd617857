"""HPSv2 on a tiny network of the package's own class: same numbers as the package's script, right gradients, real layout."""

import importlib
import json
import sys
from types import ModuleType

import open_clip
import pytest
import torch
from accelerate import init_empty_weights

from rtdmd_lightning.rewards import compat
from rtdmd_lightning.rewards.hpsv2 import ARCHITECTURE, FILENAME, HPSv2Reward, empty_clip
from rtdmd_lightning.utils.errors import UserError
from tests.support.scorers import (
    assert_autocast_changes_nothing,
    assert_frozen,
    assert_gradient_is_right,
    pictures,
    to_pil,
)

PROMPTS = ["a red cube", "Two dogs, in the snow"]
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a tiny checkpoint in the published file's layout and half precision."""
    folder = tmp_path_factory.mktemp("hpsv2")
    (folder / "tiny-hps.json").write_text(json.dumps(TINY))
    fork = compat.hpsv2_open_clip()
    fork.add_model_config(folder / "tiny-hps.json")
    torch.manual_seed(0)
    network = fork.CLIP(**fork.get_model_config("tiny-hps")).half()
    torch.save({"state_dict": network.state_dict()}, folder / FILENAME)
    return folder


@pytest.fixture
def reward(folder):
    reward = HPSv2Reward(str(folder), architecture="tiny-hps")
    reward.to(torch.device("cpu"))
    return reward


@pytest.fixture
def package(monkeypatch, tmp_path):
    """The package's own scoring script; the progress bar of its downloads is not installed."""
    monkeypatch.setenv("HPS_ROOT", str(tmp_path))
    bars = ModuleType("clint.textui")
    bars.progress = None
    monkeypatch.setitem(sys.modules, "clint", ModuleType("clint"))
    monkeypatch.setitem(sys.modules, "clint.textui", bars)
    for name in ("hpsv2", "hpsv2.utils", "hpsv2.img_score"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    bare = compat._bare_package("hpsv2")
    monkeypatch.setitem(sys.modules, "hpsv2", bare)
    bare.utils = None
    return importlib.import_module("hpsv2.img_score")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", [32, 80, (64, 48), 20])
def test_same_number_as_the_packages_script(reward, package, folder, size):
    """PIL path against tensor path: equal sizes, larger, not square, smaller."""
    fork = compat.hpsv2_open_clip()
    images = pictures(2, size)
    network = fork.CLIP(**fork.get_model_config("tiny-hps"), output_dict=True)
    package.model_dict["model"] = network
    package.model_dict["preprocess_val"] = fork.image_transform(32, is_train=False)
    expected = [
        float(package.score(to_pil(image), prompt, cp=str(folder / FILENAME))[0])
        for image, prompt in zip(images, PROMPTS, strict=True)
    ]
    scores = reward.score(images, PROMPTS, [{}, {}])
    assert scores.shape == (2,) and scores.dtype == torch.float32
    torch.testing.assert_close(scores, torch.tensor(expected), rtol=0, atol=1e-3)
    assert (scores[0] - scores[1]).abs() > 1e-2


def test_score_depends_on_image_and_prompt(reward):
    images = pictures(2, 32)
    scores = reward.score(images[[0, 0, 1]], [PROMPTS[0], PROMPTS[1], PROMPTS[0]], [{}] * 3)
    assert len({round(score, 4) for score in scores.tolist()}) == 3
    alone = reward.score(images[1:], PROMPTS[:1], [{}])
    torch.testing.assert_close(scores[2:], alone)


def test_a_prompt_is_encoded_once_to_the_same_bits(reward, monkeypatch):
    """Also after a validation, whose tensors could not be saved for a backward pass."""
    fork, encode, encoded = compat.hpsv2_open_clip(), reward._clip.encode_text, []
    images, prompts = pictures(3, 32), [PROMPTS[0], PROMPTS[1], PROMPTS[0]]
    with torch.no_grad():
        text = encode(fork.tokenize(prompts), normalize=True)
        expected = (reward._clip.encode_image(reward._preprocess(images), normalize=True) * text).sum(-1)
    monkeypatch.setattr(
        reward._clip, "encode_text", lambda t, normalize: encoded.append(len(t)) or encode(t, normalize)
    )
    with torch.inference_mode():
        assert torch.equal(reward.score(images, prompts, [{}] * 3), expected)
    assert torch.equal(reward.score(images.requires_grad_(), prompts, [{}] * 3), expected)
    reward.score(images, prompts, [{}] * 3).sum().backward()
    assert encoded == [2] and images.grad is not None and images.grad.abs().sum() > 0
    monkeypatch.setattr(reward._prompt_features.memory, "capacity", 1)
    for prompt in (PROMPTS[0], PROMPTS[1], PROMPTS[0]):
        reward.score(images, [prompt] * 3, [{}] * 3)
    assert encoded == [2, 1, 1]


def test_gradient_reaches_the_pixels(reward):
    reward._clip.double()
    assert_gradient_is_right(reward, pictures(2, 24), PROMPTS)


def test_autocast_outside_does_not_change_the_score(reward):
    assert_autocast_changes_nothing(reward, PROMPTS)


def test_the_weights_are_frozen_and_in_eval_mode(reward):
    assert_frozen(reward._clip)


def test_the_full_architecture_has_the_published_tensors():
    """HPS v2.1 is open_clip's ViT-H-14; keys and shapes of today's open_clip are an independent record of it."""
    with init_empty_weights(include_buffers=False):
        today = open_clip.CLIP(**open_clip.get_model_config("ViT-H-14"))
    shapes = {key: tensor.shape for key, tensor in empty_clip(ARCHITECTURE).state_dict().items()}
    assert shapes == {key: tensor.shape for key, tensor in today.state_dict().items()}
    assert sum(shape.numel() for shape in shapes.values()) == 986_109_441


def test_a_checkpoint_that_lacks_tensors_is_refused(folder, tmp_path):
    state = torch.load(folder / FILENAME, weights_only=True)["state_dict"]
    del state["ln_final.bias"]
    torch.save({"state_dict": state}, tmp_path / FILENAME)
    with pytest.raises(UserError, match=r"lacks 1 of \d+ tensors, ln_final.bias"):
        HPSv2Reward(str(tmp_path), architecture="tiny-hps").to(torch.device("cpu"))


def test_a_checkpoint_of_another_size_is_refused(folder, tmp_path):
    state = torch.load(folder / FILENAME, weights_only=True)["state_dict"]
    state["ln_final.bias"] = torch.zeros(17)
    torch.save({"state_dict": state}, tmp_path / FILENAME)
    with pytest.raises(UserError, match=r"ln_final.bias has the shape \(17,\), wanted \(16,\)"):
        HPSv2Reward(str(tmp_path), architecture="tiny-hps").to(torch.device("cpu"))


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / FILENAME).write_text("<html>not found</html>")
    with pytest.raises(UserError, match="download it again"):
        HPSv2Reward(str(tmp_path)).to(torch.device("cpu"))
