"""FLUX.1 and FLUX.2 against diffusers' own pipelines, and the input that they refuse."""

import json
import shutil
from itertools import pairwise

import pytest
import torch
from diffusers import Flux2KleinPipeline, FluxPipeline
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import AttentionBackendName

from rtdmd_lightning.callbacks.export import write_adapter
from rtdmd_lightning.models.flux import FluxBackbone
from rtdmd_lightning.models.flux2 import Flux2Backbone
from rtdmd_lightning.modules import ACDMDModule
from rtdmd_lightning.roles import lora
from rtdmd_lightning.roles.inference import InferenceModel
from rtdmd_lightning.roles.roles import EMA, FAKE_SCORE, GENERATOR, TEACHER
from rtdmd_lightning.sampling.sampler import SamplerSettings
from rtdmd_lightning.utils.errors import UserError
from rtdmd_lightning.utils.randomness import SampleRandom
from tests.support.roles import active_adapters, teacher_velocity
from tests.support.tiny import tiny_backbone
from tests.support.tiny_backbones import OPTIONS, RESOLUTION, TEXT_TOKENS, module_of, tiny_backbones

CPU = torch.device("cpu")
PROMPTS = ["a photo of a red circle", "a photo of two crosses"]
FAMILIES = ["flux", "flux_free", "flux2"]
GUIDANCE = 4.5


def built(folders, name, *, backbone=None, **options):
    return module_of(tiny_backbones(folders, **backbone or {})[name], **options)


def pipeline_latents(backbone, latents):
    """Our packed latents in the form that the family's pipeline takes."""
    return latents.mT.unflatten(2, (backbone.side, backbone.side)) if isinstance(backbone, Flux2Backbone) else latents


def call(pipeline, backbone, prompts, latents, **options):
    """The pipeline from these latents; raw sigmas, which it shifts itself."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompt=prompts,
        latents=pipeline_latents(backbone, latents),
        num_inference_steps=len(options["sigmas"]),
        height=RESOLUTION,
        width=RESOLUTION,
        max_sequence_length=TEXT_TOKENS,
        **options,
    ).images


@pytest.mark.parametrize("name", FAMILIES)
def test_sampling_with_eta_zero_is_the_pipeline_with_the_same_sigmas(folders, name):
    module = built(folders, name, sampler=SamplerSettings(eta=0.0))
    latents = SampleRandom(5, [0, 1], CPU).normal("start", module.backbone.latent_shape())
    pipeline = module.backbone.pipeline_class.from_pretrained(folders[name])
    sigmas = [1.0, 0.75, 0.5, 0.25]
    theirs = call(pipeline, module.backbone, PROMPTS, latents, sigmas=sigmas, output_type="pt", guidance_scale=1.0)
    assert pipeline.scheduler.sigmas.tolist() == pytest.approx(module.sampler.sigmas)
    ours = module.generate(PROMPTS, [0, 1], seed=5, role=TEACHER)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert (ours[0] - module.generate(PROMPTS[1:], [0], seed=5, role=TEACHER)[0]).abs().max() > 5e-3  # prompts matter


@pytest.mark.parametrize(
    ("name", "options", "forward_passes"),
    [
        ("flux", {"guidance_scale": GUIDANCE}, 1),
        ("flux_free", {"true_cfg_scale": GUIDANCE, "negative_prompt": ["", ""]}, 2),
        ("flux2", {"guidance_scale": GUIDANCE}, 2),
    ],
)
def test_the_teachers_guidance_is_the_pipelines(folders, name, options, forward_passes):
    """Two Euler steps: the clean prediction is never reached, so both velocities count."""
    module = built(folders, name)
    backbone, conditioning = module.backbone, module.embed(PROMPTS, CPU)
    latents = torch.randn(2, *backbone.latent_shape(), generator=torch.Generator().manual_seed(0))
    pipeline = backbone.pipeline_class.from_pretrained(folders[name])
    theirs = call(pipeline, backbone, PROMPTS, latents, sigmas=[1.0, 0.5], output_type="pt", **options)
    counted = []
    handle = module.roles.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: counted.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    sigmas = backbone.sigmas([1000, 500])
    for sigma, sigma_next in pairwise(sigmas):
        velocity = teacher_velocity(module, latents, sigma, conditioning, GUIDANCE)
        latents = latents + (sigma_next - sigma) * velocity
    handle.remove()
    torch.testing.assert_close(backbone.decode(latents).clamp(0, 1), theirs, rtol=0, atol=1e-4)
    assert counted == [2 * forward_passes] * 2
    assert (velocity - module.roles.velocity(TEACHER, latents, sigma, conditioning)).abs().max() > 1e-3


def test_all_roles_but_the_teacher_get_the_backbones_guidance(folders):
    module = built(folders, "flux")
    seen = {}
    module.roles.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.update({active_adapters(module): kwargs["guidance"].tolist()}), with_kwargs=True
    )
    conditioning = module.embed(PROMPTS, CPU)
    latents = torch.zeros(2, *module.backbone.latent_shape())
    for role in (GENERATOR, FAKE_SCORE, EMA):
        module.roles.velocity(role, latents, 0.5, conditioning)
    teacher_velocity(module, latents, 0.5, conditioning, 2.0)
    assert seen == {(GENERATOR,): [1.0, 1.0], (FAKE_SCORE,): [1.0, 1.0], (EMA,): [1.0, 1.0], (): [2.0, 2.0]}


@pytest.mark.parametrize(("options", "guidance"), [({}, 1.0), ({"guidance": 3.5}, 3.5)])
def test_a_generator_that_has_not_learnt_yet_is_the_base_under_the_backbones_guidance(folders, options, guidance):
    module = module_of(FluxBackbone(str(folders["flux"]), **OPTIONS | options), move_adapters=False)
    conditioning = module.embed(PROMPTS, CPU)
    latents = torch.randn(2, *module.backbone.latent_shape(), generator=torch.Generator().manual_seed(0))
    teachers = {scale: teacher_velocity(module, latents, 0.5, conditioning, scale) for scale in (1.0, 3.5)}
    torch.testing.assert_close(
        module.roles.velocity(GENERATOR, latents, 0.5, conditioning), teachers[guidance], rtol=0, atol=0
    )
    assert (teachers[3.5] - teachers[1.0]).abs().max() > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pipelines_own_schedule(folders, name):
    backbone = tiny_backbones(folders)[name]
    backbone.load()
    pipeline = backbone.pipeline_class.from_pretrained(folders[name])
    pipeline.set_progress_bar_config(disable=True)
    pipeline(prompt="a", num_inference_steps=7, height=RESOLUTION, width=RESOLUTION, max_sequence_length=TEXT_TOKENS)
    assert backbone.pipeline_sigmas(7) == pytest.approx(pipeline.scheduler.sigmas.tolist())


@pytest.mark.parametrize("name", [*FAMILIES, "sd3"])
def test_a_blank_conditioning_is_like_a_real_one(folders, tiny_folder, name):
    backbone = tiny_backbone(tiny_folder) if name == "sd3" else tiny_backbones(folders)[name]
    backbone.load()
    real, blank = (
        found.tensors() for found in (backbone.encode_prompts(["one", "two"]), backbone.blank_conditioning(2))
    )
    assert blank.keys() == real.keys()
    for part, tensor in real.items():
        assert (blank[part].shape, blank[part].dtype) == (tensor.shape, tensor.dtype), part


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [*FAMILIES, "flux2_two_bases", "sd3"])
def test_without_weights_a_transformer_has_all_tensors_that_it_has_with_them_and_no_memory(
    folders, tiny_folder, name, dtype
):
    def bases(reads_weights):
        options = {"dtype": dtype}
        backbone = tiny_backbone(tiny_folder, **options) if name == "sd3" else tiny_backbones(folders, **options)[name]
        backbone.reads_weights = reads_weights
        return [base for base in (backbone.load(), backbone.load_generator_base()) if base is not None]

    read, awaited = bases(True), bases(False)
    assert len(read) == len(awaited) == 1 + (name == "flux2_two_bases")
    for real, blank in zip(read, awaited, strict=True):
        found, wanted = ([*m.named_parameters(), *m.named_buffers()] for m in (blank, real))
        assert [(path, t.shape, t.dtype, t.device) for path, t in found] == [
            (path, t.shape, t.dtype, t.device) for path, t in wanted
        ]
        assert all(tensor.untyped_storage().nbytes() == tensor.element_size() for _, tensor in found)
        assert not any(module.training for module in blank.modules())
        assert not any(parameter.requires_grad for parameter in blank.parameters())


def test_flux2s_latents_are_scaled_by_the_variance_and_its_eps(folders):
    """The published autoencoder's eps, 1e-4, is alone where the variance is 0."""
    backbone = tiny_backbones(folders)["flux2"]
    backbone.load()
    latents = torch.randn(1, backbone.tokens, 16)
    backbone.loaded.vae.bn.running_mean.zero_()
    for variance, scale in ((0.0, 0.01), (3e-4, 0.02)):
        backbone.loaded.vae.bn.running_var.fill_(variance)
        found = backbone.to_vae_latents(latents)
        assert float(found.std() / latents.std()) == pytest.approx(scale, rel=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_decode_passes_gradients_to_the_latents(folders, name):
    module = built(folders, name)
    latents = torch.randn(1, *module.backbone.latent_shape(), requires_grad=True)
    module.backbone.decode(latents).square().sum().backward()
    assert latents.grad is not None and (latents.grad != 0).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_bfloat16_base_gives_float32_velocities_near_the_float32_ones(folders, name):
    velocities = []
    for dtype in ("float32", "bfloat16"):
        module = built(folders, name, backbone={"dtype": dtype})
        latents = torch.randn(2, *module.backbone.latent_shape(), generator=torch.Generator().manual_seed(0))
        velocities.append(teacher_velocity(module, latents, 0.5, module.embed(PROMPTS, CPU), 2.0))
    assert velocities[1].dtype == torch.float32
    assert (velocities[1] - velocities[0]).norm() < 0.1 * velocities[0].norm()


@pytest.mark.parametrize("name", [*FAMILIES, "flux2_two_bases"])
def test_gradient_checkpointing_gives_the_same_gradients(folders, name):
    gradients = []
    for checkpointing in (False, True):
        module = built(folders, name, backbone={"gradient_checkpointing": checkpointing})
        for base in module.roles.bases:
            base.train()
        latents = torch.randn(2, *module.backbone.latent_shape(), generator=torch.Generator().manual_seed(0))
        loss = module.roles.velocity(GENERATOR, latents, 0.5, module.embed(PROMPTS, CPU)).square().mean()
        with torch.no_grad():
            module.roles.velocity(FAKE_SCORE, latents, 0.5, module.embed(PROMPTS, CPU))
        with module.roles.role(GENERATOR):
            loss.backward()
        assert all(parameter.grad is None for parameter in module.roles.parameters_of(FAKE_SCORE))
        gradients.append([parameter.grad for parameter in module.roles.parameters_of(GENERATOR)])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", [*FAMILIES, "flux2_two_bases"])
def test_the_exported_adapter_makes_the_students_images_in_the_stock_pipeline(folders, name, tmp_path):
    module = built(folders, name, sampler=SamplerSettings(eta=0.0))
    backbone = module.backbone
    write_adapter(lora.adapter_state_dict(module.roles.base_of(EMA), EMA), tmp_path, backbone, module.lora)
    pipeline = backbone.pipeline_class.from_pretrained(folders["flux2_distilled" if "two" in name else name])
    latents = SampleRandom(5, [0, 1], CPU).normal("start", backbone.latent_shape())
    options = {"sigmas": [1.0, 0.75, 0.5, 0.25], "output_type": "pt", "guidance_scale": 1.0}
    without = call(pipeline, backbone, PROMPTS, latents, **options)
    pipeline.load_lora_weights(tmp_path)
    theirs = call(pipeline, backbone, PROMPTS, latents, **options)
    torch.testing.assert_close(module.generate(PROMPTS, [0, 1], seed=5), theirs, rtol=0, atol=1e-4)
    assert (theirs - without).abs().max() > 1e-2


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "part"), [("flux", "text_encoder_2"), ("flux2", "tokenizer")])
def test_a_folder_that_lacks_a_part_is_refused_by_name(folders, name, part, tmp_path):
    copy = tmp_path / "broken"
    shutil.copytree(folders[name], copy)
    shutil.rmtree(copy / part)
    with pytest.raises(UserError, match=f"lacks {part}$"):
        type(tiny_backbones(folders)[name])(str(copy), **OPTIONS).load()


@pytest.mark.parametrize("name", ["flux", "flux2"])
@pytest.mark.parametrize("resolution", [0, 28, -8])
def test_a_resolution_that_has_no_whole_patches_is_refused(folders, name, resolution):
    with pytest.raises(UserError, match=f"resolution {resolution} cannot be represented"):
        tiny_backbones(folders, resolution=resolution)[name].load()


def test_the_distilled_klein_is_refused_as_a_teacher_and_draws(folders):
    """As `configs/evaluate/flux2_klein_4b.yaml` has it: the distilled model beside those trained from it."""
    backbone = Flux2Backbone(str(folders["flux2_distilled"]), **OPTIONS)
    module = ACDMDModule(backbone, batch_size=1, guidance_scale=(3.0, 3.0))
    with pytest.raises(UserError, match="generator_pretrained"):
        module.check()
    model = InferenceModel(backbone, steps=2, guidance_scale=1.0, eta=0.0)
    model.load(torch.device("cpu"))
    assert model.generate(["a red circle"], [0], seed=0).isfinite().all()


def test_a_missing_generator_base_is_told_by_name(folders, tmp_path):
    backbone = Flux2Backbone(str(folders["flux2"]), generator_pretrained=str(tmp_path / "no"), **OPTIONS)
    with pytest.raises(UserError, match="no does not exist"):
        backbone.load_generator_base()


def with_scheduler(folder, copy, **options):
    shutil.copytree(folder, copy)
    path = copy / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))
    return str(copy)


def test_a_scheduler_of_another_kind_is_refused(folders, tmp_path):
    for number, options in enumerate(({"shift_terminal": 0.1}, {"time_shift_type": "linear"})):
        backbone = FluxBackbone(with_scheduler(folders["flux"], tmp_path / str(number), **options), **OPTIONS)
        backbone.load()
        with pytest.raises(UserError, match="shift_terminal or time_shift_type"):
            backbone.sigmas([1000, 500])


def test_a_static_shift_is_used_where_the_scheduler_has_one(folders, tmp_path):
    options = {"use_dynamic_shifting": False, "shift": 3.0}
    backbone = FluxBackbone(with_scheduler(folders["flux_free"], tmp_path / "schnell", **options), **OPTIONS)
    backbone.load()
    assert backbone.sigmas([1000, 750, 500, 250]) == pytest.approx((1.0, 0.9, 0.75, 0.5, 0.0))


def test_the_pipelines_are_the_families_own():
    assert FluxBackbone.pipeline_class is FluxPipeline and Flux2Backbone.pipeline_class is Flux2KleinPipeline


@pytest.mark.parametrize("name", ["flux", "flux2_two_bases"])
def test_an_attention_backend_is_used_by_every_base(folders, name):
    modules = [built(folders, name, backbone=options) for options in ({}, {"attention_backend": "_native_math"})]
    latents = torch.randn(2, *modules[0].backbone.latent_shape(), generator=torch.Generator().manual_seed(0))
    try:
        for role in (GENERATOR, FAKE_SCORE):
            one, other = (m.roles.velocity(role, latents, 0.5, m.embed(PROMPTS, CPU)) for m in modules)
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        processors = [
            module.processor
            for base in modules[1].roles.bases
            for module in base.modules()
            if isinstance(module, AttentionModuleMixin)
        ]
        assert {processor._attention_backend for processor in processors} == {AttentionBackendName._NATIVE_MATH}
    finally:
        modules[1].roles.transformer.set_attention_backend("native")  # diffusers keeps one for the process too


@pytest.mark.parametrize("backend", ["flash", "nonsense"])
def test_an_attention_backend_that_is_not_there_is_refused_before_weights_are_read(folders, backend):
    backbone = tiny_backbones(folders, attention_backend=backend)["flux"]
    with pytest.raises(UserError, match=f"attention_backend {backend} cannot be used"):
        backbone.check()
