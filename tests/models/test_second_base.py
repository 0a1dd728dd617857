"""FLUX.2-klein: the generator and its EMA live in weights of their own, teacher and fake score in klein-base."""

import pytest
import torch

from rtdmd_lightning.modules import ACDMDModule
from rtdmd_lightning.roles import lora
from rtdmd_lightning.roles.roles import EMA, FAKE_SCORE, GENERATOR, TEACHER
from tests.support.tiny_backbones import module_of, tiny_backbones

LEVEL = 0.6


@pytest.fixture
def backbone(folders):
    return tiny_backbones(folders)["flux2_two_bases"]


def inputs(module):
    latents = torch.randn(2, *module.backbone.latent_shape(), generator=torch.Generator().manual_seed(0))
    return latents, module.embed(["a red circle", "two blue crosses"], torch.device("cpu"))


def bare(backbone, transformer, latents, conditioning):
    return backbone.velocity(transformer, latents, torch.full((2,), LEVEL), conditioning)


def test_every_role_starts_from_its_own_weights(backbone):
    module = module_of(backbone, move_adapters=False)
    latents, conditioning = inputs(module)
    klein_base = bare(backbone, backbone.load(), latents, conditioning)
    distilled = bare(backbone, backbone.load_generator_base(), latents, conditioning)
    assert (klein_base - distilled).abs().max() > 0.1
    for role, expected in ((TEACHER, klein_base), (FAKE_SCORE, klein_base), (GENERATOR, distilled), (EMA, distilled)):
        torch.testing.assert_close(
            module.roles.velocity(role, latents, LEVEL, conditioning), expected, rtol=0, atol=0, msg=role
        )


def test_without_a_base_of_its_own_the_generator_starts_from_the_teachers(folders):
    module = module_of(tiny_backbones(folders)["flux2"], move_adapters=False)
    assert module.roles.generator_base is None and module.roles.bases == [module.roles.transformer]
    latents, conditioning = inputs(module)
    teacher = module.roles.velocity(TEACHER, latents, LEVEL, conditioning)
    torch.testing.assert_close(module.roles.velocity(GENERATOR, latents, LEVEL, conditioning), teacher, rtol=0, atol=0)


def test_an_adapter_exists_only_where_its_roles_run(backbone):
    module = module_of(backbone)
    for base, present, absent in (
        (module.roles.transformer, (FAKE_SCORE,), (GENERATOR, EMA)),
        (module.roles.generator_base, (GENERATOR, EMA), (FAKE_SCORE,)),
    ):
        assert all(lora.adapter_parameters(base, name) for name in present)
        assert not any(lora.adapter_parameters(base, name) for name in absent)


def test_what_trains_is_the_same_set_in_every_role(backbone):
    module = module_of(backbone)
    expected = {id(parameter) for role in (GENERATOR, FAKE_SCORE) for parameter in module.roles.parameters_of(role)}
    for role in (GENERATOR, FAKE_SCORE, TEACHER, EMA):
        with module.roles.role(role):
            assert {id(parameter) for parameter in module.parameters() if parameter.requires_grad} == expected


def test_a_checkpoint_holds_all_adapters_and_no_base_and_restores_every_role(backbone, folders):
    module = module_of(backbone)
    state = module.state_dict()
    assert len(state) == sum(len(module.roles.parameters_of(role)) for role in (GENERATOR, FAKE_SCORE, EMA))
    fresh = module_of(tiny_backbones(folders)["flux2_two_bases"], move_adapters=False)
    fresh.load_state_dict(state)
    latents, conditioning = inputs(module)
    for role in (GENERATOR, FAKE_SCORE, EMA):
        restored, saved = (m.roles.velocity(role, latents, LEVEL, conditioning) for m in (fresh, module))
        torch.testing.assert_close(restored, saved, rtol=0, atol=0, msg=role)


def test_the_adapter_files_keys_are_those_of_a_bare_transformer(backbone, folders, tmp_path):
    module = module_of(backbone)
    state = lora.adapter_state_dict(module.roles.base_of(EMA), EMA)
    shared = module_of(tiny_backbones(folders)["flux2"])
    assert state.keys() == lora.adapter_state_dict(shared.roles.base_of(EMA), EMA).keys()
    path = tmp_path / "generator_ema.pt"
    torch.save(state, path)
    started = module_of(tiny_backbones(folders)["flux2_two_bases"], move_adapters=False, initial_adapter=str(path))
    latents, conditioning = inputs(module)
    expected = module.roles.velocity(EMA, latents, LEVEL, conditioning)
    for role in (GENERATOR, EMA):
        torch.testing.assert_close(
            started.roles.velocity(role, latents, LEVEL, conditioning), expected, rtol=0, atol=1e-5
        )


class Stacked(ACDMDModule):
    """Frozen cold-start adapters under generator and fake score, as stage 2 has them."""

    def __init__(self, *args, files, **options):
        super().__init__(*args, **options)
        self.files = files

    def frozen_adapters(self):
        return {f"cold_{role}": path for role, path in self.files.items()}

    def stacks(self):
        cold = {GENERATOR: f"cold_{GENERATOR}", EMA: f"cold_{GENERATOR}", FAKE_SCORE: f"cold_{FAKE_SCORE}"}
        return {role: (cold[role], *stack) if role in cold else stack for role, stack in super().stacks().items()}


def test_adapters_under_the_trained_ones_lie_in_the_base_of_their_roles(backbone, folders, tmp_path):
    first = module_of(backbone)
    files = {role: str(tmp_path / f"{role}.pt") for role in (GENERATOR, FAKE_SCORE)}
    for role, path in files.items():
        torch.save(lora.adapter_state_dict(first.roles.base_of(role), role), path)
    second = Stacked(tiny_backbones(folders)["flux2_two_bases"], 2, (3.0, 3.0), files=files, lora=first.lora)
    second.configure_model()
    latents, conditioning = inputs(first)
    for role, source in ((GENERATOR, GENERATOR), (EMA, GENERATOR), (FAKE_SCORE, FAKE_SCORE), (TEACHER, TEACHER)):
        now, before = (
            second.roles.velocity(role, latents, LEVEL, conditioning),
            first.roles.velocity(source, latents, LEVEL, conditioning),
        )
        torch.testing.assert_close(now, before, rtol=0, atol=1e-6, msg=role)


def test_whole_transformers_start_from_them_too(backbone):
    module = module_of(backbone, move_adapters=False, trainable="full")
    distilled, base = backbone.load_generator_base(), backbone.load()
    for role, start in ((GENERATOR, distilled), (EMA, distilled), (FAKE_SCORE, base), (TEACHER, base)):
        pairs = zip(module.roles.base_of(role).parameters(), start.parameters(), strict=True)
        assert all(torch.equal(*pair) for pair in pairs), role
