"""A quantised base is the base of the rounded weights, in every role and both ways; adapters on it are trained as ever."""

import importlib.util

import pytest
import torch
from torch import nn

from rtdmd_lightning.models.base import Backbone
from rtdmd_lightning.models.frozen_linear import FrozenLinear, pack, unpack
from rtdmd_lightning.models.quantization import check_device, quantize
from rtdmd_lightning.modules import ACDMDModule
from rtdmd_lightning.planning.fake_device import FAKE_DEVICE, faked
from rtdmd_lightning.planning.tracking import AllocationTracker
from rtdmd_lightning.roles.compiling import compile_blocks
from rtdmd_lightning.roles.inference import InferenceModel
from rtdmd_lightning.roles.lora import adapter_state_dict
from rtdmd_lightning.roles.roles import EMA, FAKE_SCORE, GENERATOR, TEACHER
from rtdmd_lightning.utils.errors import UserError
from tests.support.tiny import tiny_backbone
from tests.support.tiny_backbones import module_of, tiny_backbones

CPU = torch.device("cpu")
KINDS = ("int8", "fp8", "nf4")
PROMPTS = ["a red circle", "two blue crosses"]
LARGEST_ERROR = {"int8": 0.5 / 127, "fp8": 2**-4, "nf4": 0.16}
"""Of a weight, as a part of the largest one that shares its scale (nf4: half the widest gap of its table)."""
BYTES = {"int8": 1, "fp8": 1, "nf4": 0.5}


def families(tiny_folder, folders, **options) -> dict[str, Backbone]:
    return {"sd3": tiny_backbone(tiny_folder, **options), **tiny_backbones(folders, **options)}


def dequantize(transformer: nn.Module) -> None:
    """Plain linear layers of the rounded weights in place of quantised ones."""
    for path, layer in list(transformer.named_modules()):
        if isinstance(layer, FrozenLinear):
            plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
            plain.weight = nn.Parameter(layer.dequantized(), requires_grad=False)
            plain.bias = layer.bias
            transformer.set_submodule(path, plain)


def gradients(module: ACDMDModule, role: str) -> list[torch.Tensor]:
    """Of a role's mean squared velocity: for the latents, and for its adapter."""
    shape = (2, *module.backbone.latent_shape())
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    conditioning = module.embed(PROMPTS, CPU)
    with module.roles.role(role):
        module.roles.velocity(role, latents, 0.6, conditioning).square().mean().backward()
    own = module.roles.parameters_of(role) if role in module.roles.trained else []
    reached = [parameter.grad for parameter in own if parameter.grad is not None]  # SD3's last block drops its text
    assert latents.grad is not None and latents.grad.any()
    assert not own or (len(reached) > 0.8 * len(own) and all(gradient.isfinite().all() for gradient in reached))
    return [latents.grad, *reached]


@pytest.mark.parametrize("kind", KINDS)
def test_weights_come_back_rounded_and_take_few_bytes(kind):
    weight = torch.randn(96, 128, generator=torch.Generator().manual_seed(0))
    packed, scale = pack(weight, kind)
    back = unpack(packed, scale, kind, (96, 128), torch.float32)
    together = 64 if kind == "nf4" else 128
    largest = weight.reshape(-1, together).abs().amax(dim=1, keepdim=True)
    assert ((back - weight).reshape(-1, together).abs() / largest).max() <= LARGEST_ERROR[kind] + 1e-6
    assert packed.numel() * packed.element_size() == BYTES[kind] * weight.numel()
    assert scale.dtype == torch.float32 and scale.numel() == weight.numel() // together
    once_more = unpack(*pack(back, kind), kind, (96, 128), torch.float32)
    torch.testing.assert_close(once_more, back, rtol=1e-6, atol=0)  # rounded weights are kept


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_zeros_stays_zero(kind):
    assert not unpack(*pack(torch.zeros(4, 64), kind), kind, (4, 64), torch.float32).any()


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("sd3", "nf4"),
        *(pytest.param("sd3", kind, marks=pytest.mark.slow) for kind in ("int8", "fp8")),
        *(pytest.param("flux2_two_bases", kind, marks=pytest.mark.slow) for kind in KINDS),
    ],
)
def test_every_role_computes_and_back_propagates_as_on_the_rounded_weights(family, kind, tiny_folder, folders):
    quantized, rounded, plain = (
        module_of(families(tiny_folder, folders, quantization=option)[family]) for option in (kind, kind, "none")
    )
    for base in rounded.roles.bases:
        dequantize(base)
    for role in (TEACHER, FAKE_SCORE, GENERATOR, EMA):
        for one, other in zip(gradients(quantized, role), gradients(rounded, role), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, msg=role)
    latents, conditioning = torch.randn(2, *plain.backbone.latent_shape()), plain.embed(PROMPTS, CPU)
    ours, theirs = (module.roles.velocity(TEACHER, latents, 0.6, conditioning) for module in (quantized, plain))
    assert 0 < (ours - theirs).norm() / theirs.norm() < (0.5 if kind == "nf4" else 0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_blocks_linear_layers_are_quantised_and_nothing_else(kind, tiny_folder):
    quantized, plain = (module_of(tiny_backbone(tiny_folder, quantization=option)) for option in (kind, "none"))
    of_blocks = "transformer_blocks."
    for path, layer in plain.roles.transformer.named_modules():
        if type(layer) is nn.Linear:
            inside = path.startswith(of_blocks) and ".lora_" not in path
            assert isinstance(quantized.roles.transformer.get_submodule(path), FrozenLinear if inside else nn.Linear)
    for name in quantized.roles.own:
        assert all(parameter.dtype == torch.float32 for parameter in quantized.roles.parameters_of(name))
    trained = {id(parameter) for role in quantized.roles.trained for parameter in quantized.roles.parameters_of(role)}
    assert {id(parameter) for parameter in quantized.parameters() if parameter.requires_grad} == trained


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_exported_and_what_is_saved_has_the_same_keys_and_shapes(kind, tiny_folder):
    quantized, plain = (module_of(tiny_backbone(tiny_folder, quantization=option)) for option in (kind, "none"))
    for state_of in (
        lambda module: adapter_state_dict(module.roles.base_of(EMA), EMA),
        lambda module: module.state_dict(),
    ):
        ours, theirs = state_of(quantized), state_of(plain)
        assert {key: (value.shape, value.dtype) for key, value in ours.items()} == {
            key: (value.shape, value.dtype) for key, value in theirs.items()
        }
    quantized.load_state_dict(plain.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_autograd_keeps_the_bits_alone(kind):
    layer = FrozenLinear(nn.Linear(128, 96), kind)
    kept: list[torch.Tensor] = []
    x = torch.randn(2, 128, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(x)
    assert {tensor.data_ptr() for tensor in kept} == {layer.packed.data_ptr(), layer.scale.data_ptr()}


@pytest.mark.parametrize("kind", KINDS)
def test_offloaded_bits_stay_in_cpu_memory_and_work_on_the_device(kind):
    with faked():
        linear = nn.Linear(128, 96).requires_grad_(False)
        layer = nn.Sequential(FrozenLinear(linear.to(FAKE_DEVICE), kind, offloaded=True)).to(FAKE_DEVICE)[0]
        assert [bits.device for bits in (layer.packed, layer.scale)] == [CPU, CPU] and layer.bias.device == FAKE_DEVICE
        x = torch.zeros(2, 128, device=FAKE_DEVICE, requires_grad=True)
        with AllocationTracker(FAKE_DEVICE) as tracker:
            y = layer(x)
            assert tracker.current == 2 * 96 * 4  # autograd keeps what is in CPU memory
            y.sum().backward()
        assert y.device == x.grad.device == FAKE_DEVICE


@pytest.mark.parametrize("kind", KINDS)
def test_an_offloaded_base_trains_the_same_adapters(kind, tiny_folder):
    there, away = (
        module_of(tiny_backbone(tiny_folder, quantization=kind, gradient_checkpointing=True), offload=offload)
        for offload in (None, ["base"])
    )
    layers = [layer for layer in away.roles.transformer.modules() if isinstance(layer, FrozenLinear)]
    assert layers and not any(isinstance(layer.packed, nn.Parameter) for layer in layers)
    for role in (TEACHER, GENERATOR):
        for one, other in zip(gradients(away, role), gradients(there, role), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert away.state_dict().keys() == there.state_dict().keys()


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_computes_in_its_inputs_dtype_and_in_autocasts(kind):
    layer, x = FrozenLinear(nn.Linear(64, 64), kind), torch.randn(2, 64)
    assert layer(x).dtype == torch.float32 and layer(x.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(x), layer(x.bfloat16()), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_and_compiled_blocks_change_no_gradient(kind, tiny_folder):
    plain, checkpointed = (
        module_of(tiny_backbone(tiny_folder, quantization=kind, gradient_checkpointing=recomputed))
        for recomputed in (False, True)
    )
    for base in checkpointed.roles.bases:
        base.train()
        compile_blocks(base, checkpointed.backbone.block_classes, len(checkpointed.roles.stacks), backend="eager")
    for one, other in zip(gradients(checkpointed, GENERATOR), gradients(plain, GENERATOR), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_a_student_on_a_quantised_base(kind, tiny_folder, tmp_path):
    trained = module_of(tiny_backbone(tiny_folder, quantization=kind))
    torch.save(adapter_state_dict(trained.roles.base_of(EMA), EMA), tmp_path / "generator_ema.pt")
    steps = list(trained.sampler_settings.steps)
    images = {}
    for option in (kind, "none"):
        backbone = tiny_backbone(tiny_folder, quantization=option)
        model = InferenceModel(backbone, [str(tmp_path / "generator_ema.pt")], steps, eta=0.9)
        model.load(CPU)
        images[option] = model.generate(PROMPTS, [0, 1], seed=3)
    expected = trained.generate(PROMPTS, [0, 1], seed=3)
    torch.testing.assert_close(images[kind], expected, rtol=0, atol=1e-5)
    assert not torch.equal(images["none"], images[kind])


def test_a_missing_package_is_named_with_its_command_before_weights_are_read(tiny_folder, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else found(name))
    with pytest.raises(UserError, match="pip install bitsandbytes"):
        tiny_backbone(tiny_folder, quantization="nf4").check()
    tiny_backbone(tiny_folder, quantization="int8").check()


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_that_cannot_compute_it_is_refused_before_weights_are_read(kind, tiny_folder, monkeypatch):
    def refuse(*arguments) -> None:
        raise RuntimeError("no such kernel\nadvice")

    check_device(kind, CPU)
    monkeypatch.setattr("rtdmd_lightning.models.frozen_linear.unpack", refuse)
    module = ACDMDModule(tiny_backbone(tiny_folder, quantization=kind), batch_size=4, guidance_scale=(3.0, 3.0))
    monkeypatch.setattr(type(module.backbone), "load", lambda backbone: pytest.fail("weights were read"))
    with pytest.raises(UserError, match=f"quantization {kind} does not work on cpu: no such kernel;"):
        module.configure_model()


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_device_can_be_checked_anywhere_and_no_random_number_is_drawn(mode):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    with mode():
        check_device("int8", CPU)
    assert torch.equal(torch.rand(1), expected)


def test_layers_of_odd_shapes_are_quantised_too():
    for kind in KINDS:
        blocks = nn.Sequential(nn.Sequential(nn.Linear(10, 7, bias=False)))
        weight = blocks[0][0].weight.data.clone()
        quantize(blocks[0], kind, (nn.Sequential,), CPU)
        assert (blocks[0][0].dequantized() - weight).abs().max() < 0.2 * weight.abs().max()
