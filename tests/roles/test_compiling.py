"""Compiled blocks compute what eager ones do, role by role, and are never silently left uncompiled."""

import pytest
import torch
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.testing import CompileCounter
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from rtdmd_lightning.losses import total
from rtdmd_lightning.modules import ACDMDModule
from rtdmd_lightning.roles import compiling
from rtdmd_lightning.roles.lora import LoraSettings
from rtdmd_lightning.roles.lora_roles import LoraRoles
from rtdmd_lightning.roles.roles import EMA, FAKE_SCORE, GENERATOR, Roles
from rtdmd_lightning.roles.sharding import Sharding
from rtdmd_lightning.utils.randomness import SampleRandom
from tests.support.tiny import tiny_backbone
from tests.support.tiny_backbones import module_of, save_all, tiny_backbones

CPU = torch.device("cpu")
PROMPTS = ["a red circle", "a blue cross"]


@pytest.fixture(autouse=True)
def fresh():
    """Graphs and limits belong to the process."""
    with torch._dynamo.config.patch(recompile_limit=8, accumulated_recompile_limit=256):
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    return save_all(tmp_path_factory.mktemp("compiled"))


def compile_with(module: ACDMDModule, backend) -> None:
    for base in module.roles.bases:
        compiling.compile_blocks(base, module.backbone.block_classes, len(module.roles.stacks), backend)


def results(module: ACDMDModule) -> list[torch.Tensor]:
    """Of a rollout and both losses: samples, and the gradients of both roles."""
    conditioning, random = module.embed(PROMPTS, CPU), SampleRandom(0, range(2), CPU)
    trajectory = module.roll_out_to(4, conditioning, random)
    fake = module.fake_score_loss(trajectory.step(2), conditioning, random, "fake update 0")
    found = [trajectory.samples]
    step = module.last_step(trajectory, 3, conditioning, random)
    matching = module.matching_loss(step, conditioning, random, 3.0)
    for role, terms in ((FAKE_SCORE, fake), (GENERATOR, matching)):
        with module.roles.role(role):
            total(terms).backward()
        found += [parameter.grad for parameter in module.roles.parameters_of(role) if parameter.grad is not None]
    return found


@pytest.mark.parametrize(
    "name",
    ["sd3", pytest.param("flux", marks=pytest.mark.slow), pytest.param("flux2_two_bases", marks=pytest.mark.slow)],
)
def test_compiled_blocks_compute_the_same_also_when_they_are_recomputed(tiny_folder, folders, name):
    def built() -> ACDMDModule:
        options = {"gradient_checkpointing": True}
        backbone = tiny_backbone(tiny_folder, **options) if name == "sd3" else tiny_backbones(folders, **options)[name]
        module = module_of(backbone)
        for base in module.roles.bases:
            base.train()
        return module

    eager, compiled = built(), built()
    counter = CompileCounter()
    compile_with(compiled, counter)
    for one, other in zip(results(compiled), results(eager), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert counter.frame_count > 0


@pytest.mark.slow
def test_inductors_kernels_compute_the_same(tiny_folder):
    eager, compiled = (module_of(tiny_backbone(tiny_folder)) for _ in range(2))
    compile_with(compiled, "inductor")
    conditioning, random = eager.embed(PROMPTS, CPU), SampleRandom(0, range(2), CPU)
    one, other = (module.roll_out_to(1, conditioning, random).samples for module in (compiled, eager))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_role_has_graphs_of_its_own_and_coming_back_to_it_makes_no_more(tiny_folder):
    module = module_of(tiny_backbone(tiny_folder))
    counter = CompileCounter()
    compile_with(module, counter)
    latents, conditioning = torch.randn(2, *module.backbone.latent_shape()), module.embed(PROMPTS, CPU)
    counts = []
    with torch.no_grad():
        for role in (GENERATOR, EMA, GENERATOR, EMA):
            module.roles.velocity(role, latents, 0.5, conditioning)
            counts.append(counter.frame_count)
    assert 0 < counts[0] < counts[1] == counts[2] == counts[3]


def test_every_block_is_compiled_and_nothing_else(tiny_folder):
    module = module_of(tiny_backbone(tiny_folder))
    compile_with(module, "eager")
    compiled = [part for part in module.modules() if hasattr(part.forward, "_torchdynamo_orig_callable")]
    blocks = [part for part in module.roles.transformer.modules() if isinstance(part, module.backbone.block_classes)]
    assert compiled == blocks != []


def test_more_graphs_than_the_roles_need_are_an_error(tiny_folder, monkeypatch):
    monkeypatch.setattr(compiling, "GRAPHS_OF_A_ROLE", 1)
    module = module_of(tiny_backbone(tiny_folder))
    compile_with(module, "eager")
    conditioning = module.embed(PROMPTS[:1], CPU)
    with pytest.raises(FailOnRecompileLimitHit), torch.no_grad():
        for count in range(1, 6):
            latents = torch.randn(count, *module.backbone.latent_shape())
            module.roles.velocity(GENERATOR, latents, 0.5, conditioning.expand(count))


def test_sharded_blocks_are_compiled_as_whole_ones(tiny_folder, process_group):
    """FSDP2's hooks gather a block's weights around its compiled forward pass."""

    def built(sharding: Sharding | None) -> Roles:
        backbone = tiny_backbone(tiny_folder)
        stacks, settings = {GENERATOR: (GENERATOR,)}, LoraSettings(rank=4, alpha=8)
        roles = LoraRoles(backbone, stacks, [GENERATOR], settings, {}, sharding=sharding)
        draw = torch.Generator().manual_seed(0)
        for parameter in roles.parameters_of(GENERATOR):
            own = parameter.data.to_local() if isinstance(parameter, DTensor) else parameter.data
            own.copy_(torch.randn(parameter.shape, generator=draw))
        return roles

    def velocity_and_gradients(roles: Roles) -> list[torch.Tensor]:
        latents = torch.randn(2, *roles.backbone.latent_shape(), generator=torch.Generator().manual_seed(0))
        velocity = roles.velocity(GENERATOR, latents, 0.5, roles.backbone.encode_prompts(PROMPTS))
        with roles.role(GENERATOR):
            velocity.square().mean().backward()
        gradients = [parameter.grad for parameter in roles.parameters_of(GENERATOR) if parameter.grad is not None]
        return [velocity, *(grad.full_tensor() if isinstance(grad, DTensor) else grad for grad in gradients)]

    whole, sharded = built(None), built(Sharding(init_device_mesh("cpu", (1,))))
    counter = CompileCounter()
    compiling.compile_blocks(sharded.transformer, sharded.backbone.block_classes, 1, counter)
    for one, other in zip(velocity_and_gradients(sharded), velocity_and_gradients(whole), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert counter.frame_count > 0
