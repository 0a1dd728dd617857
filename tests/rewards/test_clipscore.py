"""CLIPScore on a tiny model of the real class, through the normal loading path."""

import pytest
import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file
from torchvision.transforms import v2
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from rtdmd_lightning.rewards.clipscore import ClipScoreReward
from rtdmd_lightning.shapes.world import IMAGE_SIZE
from rtdmd_lightning.utils.errors import UserError
from tests.support.scorers import assert_gradient_is_right, pictures
from tests.support.tiny import REPOSITORY
from tests.support.tiny_clip import PROMPTS, SIDE, package_logits, save_tiny_clip

CPU = torch.device("cpu")
NO_METADATA: list[dict] = [{}, {}, {}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


def loaded(folder, **options) -> ClipScoreReward:
    reward = ClipScoreReward(weights=str(folder), **options)
    reward.to(CPU)
    return reward


@pytest.mark.parametrize("size", [32, (96, 60), (20, 31)])
def test_with_bicubic_the_number_is_the_packages(folder, size):
    images = pictures(3, size)
    prompts = [PROMPTS[0], PROMPTS[0], PROMPTS[1]]
    expected = package_logits(folder, images, prompts) / 100
    assert (expected[0] - expected[1]).abs() > 0.006 and (
        expected[0] - expected[2]
    ).abs() > 0.006  # else 1e-3 is no test
    score = loaded(folder, resize="bicubic").score(images, prompts, NO_METADATA)
    assert score.shape == (3,) and score.dtype == torch.float32
    torch.testing.assert_close(score, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("size", [32, (96, 60), (20, 31)])
def test_by_default_the_number_is_that_of_torchvisions_transforms(folder, size):
    """The paper's: resize and crop by default arguments, on tensors, around the package's model."""
    processor = CLIPImageProcessor.from_pretrained(folder)
    normalise = v2.Normalize(processor.image_mean, processor.image_std)
    transforms = v2.Compose([v2.Resize(SIDE), v2.CenterCrop(SIDE), normalise])
    images = pictures(3, size)
    tokens = CLIPTokenizer.from_pretrained(folder)(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = CLIPModel.from_pretrained(folder, dtype=torch.float32)(pixel_values=transforms(images), **tokens)
    expected = output.logits_per_image.diagonal() / 100
    score = loaded(folder).score(images, PROMPTS, NO_METADATA)
    torch.testing.assert_close(score, expected, rtol=0, atol=1e-6)
    bicubic = loaded(folder, resize="bicubic").score(images, PROMPTS, NO_METADATA)
    assert size == SIDE or (score - bicubic).abs().max() > 1e-5


def test_on_the_toy_world_the_resize_does_not_matter():
    """Its pictures have the size of its CLIP."""
    folder, images = REPOSITORY / "checkpoints" / "tiny-clip", pictures(3, IMAGE_SIZE)
    bilinear, bicubic = (
        loaded(folder, resize=resize).score(images, PROMPTS, NO_METADATA) for resize in ("bilinear", "bicubic")
    )
    assert torch.equal(bilinear, bicubic)


def test_an_unknown_resize_is_refused_before_weights_are_looked_for():
    with pytest.raises(UserError, match=r"clipscore: resize .* 'nearest'"):
        ClipScoreReward(weights="nobody/has-this", resize="nearest")  # type: ignore[arg-type]


@pytest.mark.parametrize("resize", ["bilinear", "bicubic"])
def test_gradients_reach_the_pixels(folder, resize):
    reward = loaded(folder, resize=resize)
    reward.networks()[0].double()
    assert_gradient_is_right(reward, pictures(3, (40, 36)), PROMPTS)


def test_a_prompt_is_encoded_once_and_not_for_ever(folder, monkeypatch):
    reward = loaded(folder, resize="bicubic")
    encoded: list[int] = []
    encode = reward._clip.model.get_text_features
    monkeypatch.setattr(
        reward._clip.model,
        "get_text_features",
        lambda **tokens: encoded.append(len(tokens["input_ids"])) or encode(**tokens),
    )
    images = pictures(3)
    expected = package_logits(folder, images, [PROMPTS[0], PROMPTS[1], PROMPTS[0]]) / 100
    for _ in range(2):
        score = reward.score(images, [PROMPTS[0], PROMPTS[1], PROMPTS[0]], NO_METADATA)
        torch.testing.assert_close(score, expected, rtol=0, atol=1e-3)
    assert encoded == [2]
    monkeypatch.setattr(reward._clip._prompt_features.memory, "capacity", 1)
    reward.score(images, PROMPTS, NO_METADATA)
    reward.score(images, [PROMPTS[2]] * 3, NO_METADATA)
    assert encoded == [2, 1]
    reward.score(images, [PROMPTS[0]] * 3, NO_METADATA)
    assert encoded == [2, 1, 1]


def test_prompts_first_seen_in_validation_serve_a_backward_pass_later(folder):
    """Tensors made under inference_mode cannot be saved for a backward pass."""
    reward, images = loaded(folder), pictures(3)
    with torch.inference_mode():
        reward.score(images, PROMPTS, NO_METADATA)
    images.requires_grad_()
    reward.score(images, PROMPTS, NO_METADATA).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0


def test_autocast_does_not_coarsen_the_score(folder):
    images = pictures(3)
    expected = loaded(folder).score(images, PROMPTS, NO_METADATA)
    with torch.autocast("cpu", torch.bfloat16):
        score = loaded(folder).score(images, PROMPTS, NO_METADATA)
    assert torch.equal(score, expected)


def test_weights_are_frozen_and_loaded_with_the_first_move_only(folder):
    reward = ClipScoreReward(weights=str(folder))
    assert not hasattr(reward, "_clip")
    reward.to(CPU)
    (model,) = reward.networks()
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    reward.to(CPU)
    assert reward.networks() == [model]


def test_files_of_the_published_age_load(folder, tmp_path):
    """The published files also hold `position_ids`, which the classes have long dropped, and may be in half precision."""
    copy = save_tiny_clip(tmp_path)
    state = {key: tensor.half() for key, tensor in load_file(copy / "model.safetensors").items()}
    state |= {f"{part}_model.embeddings.position_ids": torch.arange(5)[None] for part in ("text", "vision")}
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    reward = loaded(copy)
    assert {parameter.dtype for parameter in reward.networks()[0].parameters()} == {torch.float32}
    expected = loaded(folder).score(pictures(3), PROMPTS, NO_METADATA)
    torch.testing.assert_close(reward.score(pictures(3), PROMPTS, NO_METADATA), expected, rtol=0, atol=5e-3)


def test_a_file_that_lacks_weights_is_refused(tmp_path):
    """transformers would draw them at random and go on."""
    folder = save_tiny_clip(tmp_path)
    state = load_file(folder / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"clipscore: .* lacks 1 of CLIPModel's weights, visual_projection\.weight"):
        loaded(folder)


def test_another_kind_of_model_is_refused(tmp_path):
    text = CLIPTextConfig(vocab_size=9, hidden_size=4, intermediate_size=4, num_attention_heads=1, num_hidden_layers=1)
    CLIPTextModel(text).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="not a CLIPModel"):
        loaded(tmp_path)


def test_without_weights_the_error_tells_how_to_fetch_them(monkeypatch, tmp_path):
    """Reading a configuration needs no weights; scoring does."""
    monkeypatch.delenv("RTDMD_REWARD_CACHE", raising=False)
    reward = ClipScoreReward(weights="nobody/has-this")
    with pytest.raises(UserError, match="hf download nobody/has-this"):
        reward.to(CPU)


LAYER = [
    *(f"self_attn.{part}_proj.{kind}" for part in "qkv" for kind in ("weight", "bias")),
    *(f"{part}.{kind}" for part in ("self_attn.out_proj", "layer_norm1", "layer_norm2") for kind in ("weight", "bias")),
    *(f"mlp.{part}.{kind}" for part in ("fc1", "fc2") for kind in ("weight", "bias")),
]


def published_keys(text_layers: int, vision_layers: int) -> set[str]:
    """Keys of the published `CLIPModel` files."""
    layers = [("text", text_layers), ("vision", vision_layers)]
    return {
        *(f"{part}_model.encoder.layers.{n}.{key}" for part, count in layers for n in range(count) for key in LAYER),
        *(f"text_model.embeddings.{part}_embedding.weight" for part in ("token", "position")),
        "vision_model.embeddings.class_embedding",
        *(f"vision_model.embeddings.{part}_embedding.weight" for part in ("patch", "position")),
        *(f"text_model.final_layer_norm.{kind}" for kind in ("weight", "bias")),
        *(f"vision_model.{norm}.{kind}" for norm in ("pre_layrnorm", "post_layernorm") for kind in ("weight", "bias")),
        "text_projection.weight",
        "visual_projection.weight",
        "logit_scale",
    }


VIT_L = {
    "projection_dim": 768,
    "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
    },
}
VIT_H = {
    "projection_dim": 1024,
    "text_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "hidden_act": "gelu",
    },
    "vision_config": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_attention_heads": 16,
        "num_hidden_layers": 32,
        "patch_size": 14,
        "hidden_act": "gelu",
    },
}


@pytest.mark.parametrize(
    ("config", "layers", "parameters"), [(VIT_L, (12, 24), 427_616_513), (VIT_H, (24, 32), 986_109_441)]
)
def test_the_published_architectures_have_the_published_keys(config, layers, parameters):
    """clipscore's and aesthetic's ViT-L/14, pickscore's ViT-H/14, at their published sizes."""
    with init_empty_weights():
        model = CLIPModel(CLIPConfig(**config))
    assert set(model.state_dict()) == published_keys(*layers)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
