"""ImageReward on a tiny network of the package's own classes: same numbers, right gradients, the published layout."""

import importlib
import json

import pytest
import torch

from rtdmd_lightning.rewards import compat
from rtdmd_lightning.rewards.imagereward import FILENAME, MED_CONFIG, VOCABULARY, ImageRewardReward, empty_image_reward
from rtdmd_lightning.utils.errors import UserError
from tests.support.scorers import (
    assert_autocast_changes_nothing,
    assert_frozen,
    assert_gradient_is_right,
    pictures,
    published_shapes,
    to_pil,
)

PROMPTS = ["a red cube", "two dogs in the snow , and a very long tail of words " * 4]
MED = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "add_cross_attention": True,
    "attention_probs_dropout_prob": 0.1,
    "encoder_width": 768,
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "vocab_size": 30524,
}
# BERT's special tokens and a few words
WORDS = ("[PAD] [UNK] [CLS] [SEP] [MASK]", "a red cube two dogs in the snow , and very long tail of words")


@pytest.fixture(scope="module", autouse=True)
def tiny_vision():
    """The package fixes the width of the text side at 768 and the vision side at "large": two small blocks stand in."""
    compat.image_reward()
    pretrain = importlib.import_module("ImageReward.models.BLIP.blip_pretrain")
    vit = importlib.import_module("ImageReward.models.BLIP.vit")

    def create_vit(*arguments):
        return vit.VisionTransformer(img_size=224, patch_size=32, embed_dim=32, depth=2, num_heads=4), 32

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "create_vit", create_vit)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a tiny checkpoint, its configuration and a vocabulary, under the published names."""
    folder = tmp_path_factory.mktemp("imagereward")
    words = " ".join(WORDS).split()
    tiny = MED | {"num_hidden_layers": 1, "intermediate_size": 32, "vocab_size": len(words) + 2}
    (folder / MED_CONFIG).write_text(json.dumps(tiny))
    (folder / VOCABULARY).write_text("\n".join(words) + "\n")
    network = empty_image_reward(str(folder / MED_CONFIG)).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for key, tensor in network.state_dict().items():
        if key.endswith("position_ids"):
            tensor.copy_(torch.arange(tensor.shape[1]))
        elif tensor.ndim == 1:
            tensor.copy_(torch.ones_like(tensor) if key.endswith("weight") else torch.zeros_like(tensor))
        else:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / tensor[0].numel() ** 0.5)
        if key.endswith(
            "patch_embed.proj.weight"
        ):  # looks at the mean of a patch, as trained ones do, not at its noise
            tensor.copy_(tensor[:, :, :1, :1].expand_as(tensor) / 32)
    torch.save(network.state_dict(), folder / FILENAME)
    return folder


@pytest.fixture
def reward(folder):
    reward = ImageRewardReward(str(folder), tokenizer=str(folder))
    reward.to(torch.device("cpu"))
    return reward


@pytest.mark.parametrize("size", [224, 512, (320, 256), 64])
def test_same_number_as_the_packages_own_scoring(reward, size):
    """PIL path against tensor path: equal sizes, larger, not square, smaller."""
    images = pictures(2, size)
    expected = [reward._blip.score(prompt, to_pil(image)) for image, prompt in zip(images, PROMPTS, strict=True)]
    scores = reward.score(images, PROMPTS, [{}, {}])
    assert scores.shape == (2,) and scores.dtype == torch.float32
    torch.testing.assert_close(scores, torch.tensor(expected), rtol=0, atol=1e-3)


def test_score_depends_on_image_and_prompt(reward):
    images = pictures(2)
    scores = reward.score(images[[0, 0, 1]], [PROMPTS[0], PROMPTS[1], PROMPTS[0]], [{}] * 3)
    assert (scores[0] - scores[1]).abs() > 2e-3 and (scores[0] - scores[2]).abs() > 2e-3
    alone = reward.score(images[1:], PROMPTS[:1], [{}])
    torch.testing.assert_close(scores[2:], alone)


def test_gradient_reaches_the_pixels(reward):
    reward._blip.double()
    assert_gradient_is_right(reward, pictures(2, 32), PROMPTS)


def test_autocast_outside_does_not_change_the_score(reward):
    assert_autocast_changes_nothing(reward, PROMPTS)


def test_the_weights_are_frozen_and_in_eval_mode(reward):
    assert_frozen(reward._blip)


def test_the_full_architecture_has_the_published_tensors(tmp_path):
    """BLIP-large (ViT-L/16 and BERT-base with cross-attention) and the head, as `ImageReward.pt` holds them."""
    with pytest.MonkeyPatch.context() as patch:
        blip = importlib.import_module("ImageReward.models.BLIP.blip")
        patch.setattr(importlib.import_module("ImageReward.models.BLIP.blip_pretrain"), "create_vit", blip.create_vit)
        (tmp_path / MED_CONFIG).write_text(json.dumps(MED))
        state = empty_image_reward(str(tmp_path / MED_CONFIG)).state_dict()
    assert {key: list(tensor.shape) for key, tensor in state.items()} == published_shapes("imagereward.json")


def test_weights_must_be_a_folder(folder):
    with pytest.raises(UserError, match="must be the folder"):
        ImageRewardReward(str(folder / FILENAME)).to(torch.device("cpu"))


def test_a_checkpoint_that_lacks_tensors_is_refused(folder, tmp_path):
    state = torch.load(folder / FILENAME, weights_only=True)
    del state["mlp.layers.7.bias"]
    torch.save(state, tmp_path / FILENAME)
    (tmp_path / MED_CONFIG).write_bytes((folder / MED_CONFIG).read_bytes())
    with pytest.raises(UserError, match=r"lacks 1 of \d+ tensors, mlp.layers.7.bias"):
        ImageRewardReward(str(tmp_path), tokenizer=str(folder)).to(torch.device("cpu"))
