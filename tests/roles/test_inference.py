"""Drawing with frozen adapters: the stock pipeline's images, merging, and independence of the batch."""

import pytest
import torch
import yaml
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel, StableDiffusion3Pipeline

from rtdmd_lightning import evaluate
from rtdmd_lightning import roles as adapters
from rtdmd_lightning.models import Flux2Backbone, FluxBackbone
from rtdmd_lightning.roles import Adapter, LayerUpdate
from rtdmd_lightning.roles.inference import METHOD_STEPS, InferenceModel, even_steps
from rtdmd_lightning.utils.errors import UserError
from rtdmd_lightning.utils.randomness import SampleRandom
from tests.support.tiny import tiny_backbone, tiny_module
from tests.support.tiny_backbones import OPTIONS, save_tiny_flux, save_tiny_flux2

CPU = torch.device("cpu")
PROMPTS = ["a photo of a red circle", "a photo of two crosses", "a photo of a blue square"]


def random_adapter(rank: int, seed: int, scale: float = 2.0, every: int = 1) -> Adapter:
    """On every `every`-th of the tiny pipeline's joint-attention query projections and feed-forward inputs."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {f"transformer_blocks.{block}.attn.to_q": (32, 32) for block in range(3)}
    shapes |= {f"transformer_blocks.{block}.attn.add_k_proj": (32, 32) for block in range(0, 3, every)}
    layers = {
        path: LayerUpdate(
            0.3 * torch.randn(rank, inputs, generator=generator),
            0.3 * torch.randn(outputs, rank, generator=generator),
            scale,
        )
        for path, (outputs, inputs) in shapes.items()
    }
    return Adapter(layers, f"adapter {seed}")


def save_published(adapter: Adapter, path) -> str:
    state = {}
    for layer, update in adapter.layers.items():
        state |= {f"{layer}.lora_A.default.weight": update.down, f"{layer}.lora_B.default.weight": update.up}
    torch.save(state, path)
    return str(path)


def model(folder, adapters=(), **options) -> InferenceModel:
    built = InferenceModel(tiny_backbone(folder), adapters, **options)
    built.load(CPU)
    return built


@pytest.fixture
def two_files(tmp_path):
    return [save_published(random_adapter(rank, rank), tmp_path / f"{rank}.pt") for rank in (2, 3)]


def test_an_image_does_not_depend_on_the_autocast_of_whoever_asks_for_it(tiny_folder, two_files):
    """The evaluation in training, `evaluate` under a trainer's precision and `sample` draw one image."""
    of_sample, of_training = model(tiny_folder, two_files), tiny_module(tiny_folder)
    for images in (of_sample.generate, of_training.generate):
        expected = images(PROMPTS, range(3), seed=5)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(images(PROMPTS, range(3), seed=5), expected)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_eta_zero_and_a_number_of_steps_is_the_stock_pipeline(tiny_folder, guidance_scale):
    latents = SampleRandom(5, [0, 1], CPU).normal("start", (4, 8, 8))
    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_folder, text_encoder_3=None, tokenizer_3=None)
    theirs = pipeline(
        PROMPTS[:2],
        latents=latents,
        num_inference_steps=28,
        guidance_scale=guidance_scale,
        max_sequence_length=1,
        output_type="pt",
    ).images
    ours = model(tiny_folder, steps=28, guidance_scale=guidance_scale, eta=0.0).generate(PROMPTS[:2], [0, 1], seed=5)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    even = model(tiny_folder, steps=even_steps(28), guidance_scale=guidance_scale, eta=0.0)
    assert (even.generate(PROMPTS[:2], [0, 1], seed=5) - theirs).abs().max() > 1e-4  # the schedules do differ


def test_without_adapters_it_draws_what_the_training_module_draws_in_the_teachers_role(tiny_folder):
    module = tiny_module(tiny_folder)
    expected = module.generate(PROMPTS, [4, 0, 7], seed=3, role="teacher")
    torch.testing.assert_close(model(tiny_folder).generate(PROMPTS, [4, 0, 7], seed=3), expected, rtol=0, atol=0)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_an_image_is_the_same_in_any_batch(tiny_folder, two_files, guidance_scale):
    drawer = model(tiny_folder, two_files, guidance_scale=guidance_scale)
    together = drawer.generate(PROMPTS, [0, 1, 2], seed=1)
    alone = torch.cat([drawer.generate([prompt], [index], seed=1) for index, prompt in enumerate(PROMPTS)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    other = drawer.generate(PROMPTS, [0, 1, 3], seed=1)
    assert torch.equal(other[:2], together[:2]) and not torch.allclose(other[2], together[2], atol=1e-3)


def test_adapters_in_order_are_those_adapters_merged_one_after_the_other(tiny_folder, two_files):
    stacked = model(tiny_folder, two_files).generate(PROMPTS, [0, 1, 2], seed=1)
    merged = model(tiny_folder)
    for path in two_files:
        adapters.merge(merged.transformer, adapters.read(path))
    torch.testing.assert_close(stacked, merged.generate(PROMPTS, [0, 1, 2], seed=1), rtol=0, atol=1e-5)
    for alone in ([], two_files[:1], two_files[1:]):
        images = model(tiny_folder, alone).generate(PROMPTS, [0, 1, 2], seed=1)
        assert (images - stacked).abs().max() > 1e-3


def test_nothing_of_it_trains(tiny_folder, two_files):
    assert not any(parameter.requires_grad for parameter in model(tiny_folder, two_files).transformer.parameters())


def test_four_even_steps_are_the_methods():
    assert tuple(even_steps(4)) == METHOD_STEPS
    assert even_steps(1) == [1000] and even_steps(3) == [1000, 667, 333]


def test_adapters_go_to_the_generators_own_base_where_it_has_one(tmp_path):
    """FLUX.2-klein's student starts from the distilled weights; without adapters the model is the teacher."""
    folders = {name: tmp_path / name for name in ("flux2", "flux2_distilled")}
    for name, folder in folders.items():
        save_tiny_flux2(folder, is_distilled=name == "flux2_distilled")
    layer = "transformer_blocks.0.attn.to_q"
    adapter = Adapter({layer: LayerUpdate(torch.randn(2, 32), torch.randn(32, 2), 2.0)}, "one layer")
    path = save_published(adapter, tmp_path / "adapter.pt")
    for adapters_, base, suffix in (([], "flux2", ""), ([path], "flux2_distilled", ".base_layer")):
        backbone = Flux2Backbone(str(folders["flux2"]), generator_pretrained=str(folders["flux2_distilled"]), **OPTIONS)
        drawer = InferenceModel(backbone, adapters_)
        drawer.load(CPU)
        found = drawer.transformer.get_parameter(f"{layer}{suffix}.weight")
        expected = Flux2Transformer2DModel.from_pretrained(folders[base], subfolder="transformer")
        assert torch.equal(found, expected.get_parameter(f"{layer}.weight"))


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_number_of_steps_is_the_stock_pipeline_where_the_shift_is_dynamic(guidance_scale, tmp_path):
    save_tiny_flux2(tmp_path, is_distilled=False)
    drawer = InferenceModel(Flux2Backbone(str(tmp_path), **OPTIONS), (), 7, guidance_scale, eta=0.0)
    drawer.load(CPU)
    ours = drawer.generate(PROMPTS[:1], [0], seed=5)
    start = SampleRandom(5, [0], CPU).normal("start", drawer.backbone.latent_shape())
    side = int(start.shape[1] ** 0.5)
    theirs = Flux2KleinPipeline.from_pretrained(tmp_path)(
        prompt=PROMPTS[:1], latents=start.transpose(1, 2).unflatten(2, (side, side)), num_inference_steps=7,
        guidance_scale=guidance_scale, height=OPTIONS["resolution"], width=OPTIONS["resolution"],
        max_sequence_length=OPTIONS["max_sequence_length"], output_type="pt",
    ).images  # fmt: skip
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    """FLUX.1 with a guidance input and without one, and an adapter for both."""
    folder = tmp_path_factory.mktemp("flux")
    for name, guidance_embeds in (("dev", True), ("free", False)):
        save_tiny_flux(folder / name, guidance_embeds=guidance_embeds)
    adapter = Adapter({"transformer_blocks.0.attn.to_q": LayerUpdate(torch.randn(2, 32), torch.randn(32, 2), 2.0)}, "")
    save_published(adapter, folder / "adapter.pt")
    return folder


@pytest.mark.parametrize(
    ("base", "adapted", "backbone", "options", "guidance"),
    [
        ("dev", True, {}, {}, 1.0),
        ("dev", True, {"guidance": 2.5}, {}, 2.5),
        ("dev", True, {}, {"guidance_scale": 3.0}, 3.0),
        ("dev", False, {}, {}, 3.5),
        ("dev", False, {}, {"guidance_scale": 1.0}, 1.0),
        ("free", True, {}, {}, None),
        ("free", False, {}, {}, None),
    ],
)
def test_a_student_has_the_guidance_input_of_its_training_and_a_base_its_own(
    flux, base, adapted, backbone, options, guidance
):
    """One forward pass a step: no CFG anywhere."""
    adapters_ = [str(flux / "adapter.pt")] if adapted else []
    drawer = InferenceModel(FluxBackbone(str(flux / base), **OPTIONS | backbone), adapters_, [1000], **options)
    drawer.load(CPU)
    seen = []
    drawer.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((len(kwargs["hidden_states"]), kwargs["guidance"])), with_kwargs=True
    )
    drawer.generate(PROMPTS[:1], [0], seed=0)
    assert [(count, None if given is None else given.tolist()) for count, given in seen] == [
        (1, guidance and [guidance])
    ]


def test_an_evaluation_says_with_which_guidance_it_draws(flux, tmp_path):
    backbone = {
        "class_path": "rtdmd_lightning.models.FluxBackbone",
        "init_args": {"pretrained": str(flux / "dev"), **OPTIONS},
    }
    entries = {
        "base": {"backbone": backbone},
        "asked": {"backbone": backbone, "guidance_scale": 2.0},
        "student": {"backbone": backbone, "adapters": [str(flux / "adapter.pt")]},
    }
    rewards = [{"class_path": "rtdmd_lightning.rewards.shapes.ShapesReward"}]
    config = {
        "entries": entries,
        "sets": {"shapes": {"prompts": "shapes:held_out:1", "rewards": rewards}},
        "baseline": "base",
        "output": str(tmp_path / "out"),
        "trainer": {"accelerator": "cpu", "devices": 1, "logger": False},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    _, _, told = evaluate.parse([f"--config={tmp_path / 'config.yaml'}"])
    assert {name: entry["guidance_scale"] for name, entry in told["entries"].items()} == {
        "base": 3.5,
        "asked": 2.0,
        "student": 1.0,
    }


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"steps": []}, "steps must fall"),
        ({"steps": [250, 500]}, "steps must fall"),
        ({"steps": [1200, 500]}, "steps must fall"),
        ({"steps": 0}, "number of steps"),
        ({"guidance_scale": 0.5}, "guidance_scale"),
        ({"eta": 1.5}, "eta"),
    ],
)
def test_bad_options_are_refused(tiny_folder, options, wanted):
    with pytest.raises(UserError, match=wanted):
        InferenceModel(tiny_backbone(tiny_folder), **options)
