"""Roles on one base: what is adapted, what trains, what a switch leaves behind."""

from itertools import combinations

import pytest
import torch

from rtdmd_lightning.modules import ACDMDModule
from rtdmd_lightning.roles import lora
from rtdmd_lightning.roles.roles import EMA, FAKE_SCORE, GENERATOR, TEACHER
from rtdmd_lightning.utils.errors import UserError
from tests.support.roles import active_adapters
from tests.support.tiny import tiny_backbone, tiny_module, train


def trainable(module):
    return {path for path, parameter in module.roles.transformer.named_parameters() if parameter.requires_grad}


def velocity(module, role):
    torch.manual_seed(3)
    latents = torch.randn(2, *module.backbone.latent_shape())
    return module.roles.velocity(
        role, latents, 0.7, module.embed(["a red circle", "a blue cross"], torch.device("cpu"))
    )


def test_only_attn_is_adapted_and_nothing_is_adapted_after_the_last_context_projection(tiny_folder):
    module = tiny_module(tiny_folder)
    adapted = {path.split(".lora_")[0] for path in lora.adapter_parameters(module.roles.transformer, GENERATOR)}
    assert "transformer_blocks.0.attn.to_add_out" in adapted
    assert "transformer_blocks.2.attn.to_add_out" not in adapted  # the last block drops its context stream
    assert any("attn2" in path for path, _ in module.roles.transformer.named_modules())
    assert not any("attn2" in path for path in adapted)
    assert len(adapted) == 3 * 8 - 1


def test_the_base_exists_once_and_no_role_copies_it(tiny_folder):
    module = tiny_module(tiny_folder)
    bare = tiny_backbone(tiny_folder).load()
    adapters = sum(
        parameter.numel()
        for name in (GENERATOR, FAKE_SCORE, EMA)
        for parameter in lora.adapter_parameters(module.roles.transformer, name).values()
    )
    assert sum(p.numel() for p in module.parameters()) == sum(p.numel() for p in bare.parameters()) + adapters


def test_teacher_is_the_bare_base(tiny_folder):
    module = tiny_module(tiny_folder)
    bare = tiny_backbone(tiny_folder).load()
    conditioning = module.embed(["a red circle", "a blue cross"], torch.device("cpu"))
    torch.manual_seed(3)
    latents = torch.randn(2, *module.backbone.latent_shape())
    expected = module.backbone.velocity(bare, latents, torch.full((2,), 0.7), conditioning)
    torch.testing.assert_close(velocity(module, TEACHER), expected, rtol=0, atol=0)


def test_roles_differ_from_each_other(tiny_folder):
    module = tiny_module(tiny_folder)
    outputs = [velocity(module, role) for role in (TEACHER, GENERATOR, FAKE_SCORE, EMA)]
    for index, one in enumerate(outputs):
        assert all((one - other).abs().max() > 1e-4 for other in outputs[index + 1 :])


def test_what_trains_is_the_same_set_in_every_role(tiny_folder):
    module = tiny_module(tiny_folder)
    expected = {
        path
        for path, _ in module.roles.transformer.named_parameters()
        if f".{GENERATOR}." in path or f".{FAKE_SCORE}." in path
    }
    for role in (GENERATOR, FAKE_SCORE, TEACHER, EMA):
        with module.roles.role(role):
            assert trainable(module) == expected
    assert trainable(module) == expected


def test_a_role_is_restored_also_when_the_body_raises(tiny_folder):
    module = tiny_module(tiny_folder)
    with module.roles.role(GENERATOR):
        with pytest.raises(RuntimeError, match="inside"), module.roles.role(FAKE_SCORE):
            raise RuntimeError("inside")
        assert active_adapters(module) == (GENERATOR,)
    assert active_adapters(module) == ()


@pytest.mark.parametrize("leave", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients_when_the_backward_pass_runs_in_its_role(tiny_folder, leave):
    """Another role runs between forward and backward; leaving it active then is the trap, and does change the gradients."""
    gradients = []
    for checkpointing in (False, True):
        module = tiny_module(tiny_folder, {"gradient_checkpointing": checkpointing})
        module.roles.transformer.train()
        loss = velocity(module, GENERATOR).square().mean()
        with torch.no_grad():
            velocity(module, FAKE_SCORE)
        with module.roles.role(FAKE_SCORE if leave else GENERATOR):
            loss.backward()
        gradients.append(
            torch.cat([p.grad.flatten() for p in module.roles.parameters_of(GENERATOR) if p.grad is not None])
        )
    equal = gradients[0].shape == gradients[1].shape and torch.allclose(*gradients, rtol=1e-5, atol=1e-7)
    assert equal != leave


def test_adapter_files_round_trip_and_refuse_what_does_not_fit(tiny_folder):
    module = tiny_module(tiny_folder)
    state = lora.adapter_state_dict(module.roles.transformer, GENERATOR)
    assert all(".lora_A.default.weight" in key or ".lora_B.default.weight" in key for key in state)
    lora.load_adapter_state_dict(module.roles.transformer, EMA, state, "a.pt")
    # To rounding: of weights that want a gradient some processors multiply in another order.
    torch.testing.assert_close(velocity(module, EMA), velocity(module, GENERATOR), rtol=0, atol=1e-5)
    with pytest.raises(UserError, match=r"a\.pt has no key that matches"):
        lora.load_adapter_state_dict(module.roles.transformer, EMA, {"nothing": torch.zeros(1)}, "a.pt")
    with pytest.raises(UserError, match="1 keys differ"):
        lora.load_adapter_state_dict(module.roles.transformer, EMA, dict(list(state.items())[1:]), "a.pt")
    with pytest.raises(UserError, match=r"set model\.lora\.rank"):
        wider = {key: torch.cat([value, value]) for key, value in state.items()}
        lora.load_adapter_state_dict(module.roles.transformer, EMA, wider, "a.pt")


def test_adapters_are_float32_on_a_bfloat16_base(tiny_folder):
    module = tiny_module(tiny_folder, {"dtype": "bfloat16"})
    dtypes = {parameter.dtype for parameter in module.roles.parameters_of(GENERATOR)}
    assert dtypes == {torch.float32}
    assert {p.dtype for p in module.roles.transformer.parameters() if not p.requires_grad} == {
        torch.bfloat16,
        torch.float32,
    }
    assert velocity(module, GENERATOR).dtype == torch.float32


def test_initial_adapters_depend_on_seed_and_name_only(tiny_folder):
    first, second = tiny_module(tiny_folder), tiny_module(tiny_folder)
    for one, other in zip(first.roles.parameters_of(GENERATOR), second.roles.parameters_of(GENERATOR), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_initial_adapters_of_other_seeds_and_other_names_differ_in_every_layer(tiny_folder):
    first = tiny_module(tiny_folder, lora=lora.LoraSettings(rank=4, alpha=8, seed=0))
    second = tiny_module(tiny_folder, lora=lora.LoraSettings(rank=4, alpha=8, seed=1))
    drawn = [
        [value for path, value in module.roles.own_state_dict(name).items() if ".lora_A." in path]
        for module, name in ((first, GENERATOR), (second, GENERATOR), (first, FAKE_SCORE))
    ]
    for layers in zip(*drawn, strict=True):
        for one, other in combinations(layers, 2):
            assert not torch.isclose(one, other).any(dim=1).all()


@pytest.mark.parametrize("std", [None, 1.0])
def test_the_standard_deviation_of_a_is_the_one_that_is_asked_for(tiny_folder, std):
    """1/rank by default, whatever is asked for otherwise; the draws are the same, and B is zero."""
    rank = 4
    backbone, settings = tiny_backbone(tiny_folder), lora.LoraSettings(rank=rank, alpha=8, init_std=std)
    transformer = backbone.load()
    lora.add_adapter(transformer, GENERATOR, settings, backbone.lora_targets)
    state = lora.adapter_state_dict(transformer, GENERATOR)
    first = torch.cat([value.flatten() for path, value in state.items() if ".lora_A." in path])
    assert first.std().item() == pytest.approx(std or 1 / rank, rel=0.02)
    assert all(not value.any() for path, value in state.items() if ".lora_B." in path)


@pytest.mark.slow
def test_adapters_may_be_bfloat16_and_are_trained_as_such(tiny_folder):
    settings = lora.LoraSettings(rank=4, alpha=8, dtype="bfloat16")
    module = ACDMDModule(tiny_backbone(tiny_folder), 2, (3.0, 3.0), lora=settings, fake_update_ratio=1)
    module.configure_model()
    before = [parameter.detach().clone() for parameter in module.roles.parameters_of(FAKE_SCORE)]
    train(module)
    after = module.roles.parameters_of(FAKE_SCORE)
    assert {
        parameter.dtype for role in (GENERATOR, FAKE_SCORE, EMA) for parameter in module.roles.parameters_of(role)
    } == {torch.bfloat16}
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_initial_adapters_are_drawn_on_the_cpu_wherever_they_are_built(tiny_folder):
    """Lightning builds on the run's device, but not under every strategy."""
    bare, elsewhere = tiny_backbone(tiny_folder).load(), tiny_backbone(tiny_folder).load()
    settings, targets = lora.LoraSettings(rank=4, alpha=8), tiny_backbone(tiny_folder).lora_targets
    lora.add_adapter(bare, GENERATOR, settings, targets)
    with torch.device("meta"):
        lora.add_adapter(elsewhere, GENERATOR, settings, targets)
    expected = lora.adapter_state_dict(bare, GENERATOR)
    for path, tensor in lora.adapter_state_dict(elsewhere, GENERATOR).items():
        assert torch.equal(tensor, expected[path]), path


def test_targets_that_match_nothing_are_refused(tiny_folder):
    with pytest.raises(UserError, match="matches the LoRA targets"):
        lora.add_adapter(tiny_backbone(tiny_folder).load(), "x", lora.LoraSettings(), ["nowhere"])


def test_targets_of_ones_own_take_the_family_s_place(tiny_folder):
    transformer = tiny_backbone(tiny_folder).load()
    own = lora.LoraSettings(rank=2, alpha=4, targets=["ff.net.2"])
    lora.add_adapter(transformer, "x", own, ["attn.to_q"])
    adapted = {path.split(".x.")[0].rpartition(".lora_")[0] for path in lora.adapter_parameters(transformer, "x")}
    assert adapted == {f"transformer_blocks.{block}.ff.net.2" for block in range(len(transformer.transformer_blocks))}
    misspelled = lora.LoraSettings(targets=["ff.net.2", "ff.nett.0"])
    with pytest.raises(UserError, match=r"matches the LoRA targets ff\.nett\.0$"):
        lora.add_adapter(tiny_backbone(tiny_folder).load(), "x", misspelled, ["attn.to_q"])
