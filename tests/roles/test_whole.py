"""Roles as whole transformers: where each starts, what trains, what a checkpoint holds, and that an average is drawn as it is."""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh

from rtdmd_lightning.roles.roles import COLD_START, EMA, FAKE_SCORE, GENERATOR, TEACHER
from rtdmd_lightning.roles.sharding import Sharding
from rtdmd_lightning.roles.whole import WholeRoles
from tests.support.tiny import tiny_backbone
from tests.support.whole import perturb, whole_module

STACKS = {GENERATOR: (GENERATOR,), FAKE_SCORE: (FAKE_SCORE,), TEACHER: (), EMA: (EMA,)}


def test_roles_start_alike_share_no_weight_and_train_in_every_role_the_same_two(tiny_folder):
    module = whole_module(tiny_folder)
    states = {role: module.roles.base_of(role).state_dict() for role in STACKS}
    for role, state in states.items():
        assert all(torch.equal(value, states[TEACHER][key]) for key, value in state.items()), role
    pointers = [p.data_ptr() for base in module.roles.bases for p in base.parameters()]
    assert len(set(pointers)) == len(pointers)
    expected = {id(p) for role in (GENERATOR, FAKE_SCORE) for p in module.roles.parameters_of(role)}
    for role in STACKS:
        with module.roles.role(role):
            assert {id(p) for p in module.parameters() if p.requires_grad} == expected


def test_a_checkpoint_holds_the_new_transformers_and_restores_them(tiny_folder):
    module, fresh = whole_module(tiny_folder), whole_module(tiny_folder)
    perturb(module)
    state = module.state_dict()
    assert len(state) == 3 * len(module.roles.base_of(TEACHER).state_dict())
    fresh.load_state_dict(state)
    for role in (GENERATOR, FAKE_SCORE, EMA):
        assert all(map(torch.equal, fresh.roles.parameters_of(role), module.roles.parameters_of(role)))
    first = next(iter(state))
    with pytest.raises(Exception, match="keys differ"):
        fresh.load_state_dict({key: value for key, value in state.items() if key != first})


def test_a_stack_starts_from_what_lies_beneath(tiny_folder, tmp_path):
    other = tiny_backbone(tiny_folder)
    other.load().proj_out.bias.data += 1.0
    other.pipeline.save_pretrained(tmp_path)
    stacks = {GENERATOR: (COLD_START, GENERATOR), EMA: (COLD_START, EMA), COLD_START: (COLD_START,), TEACHER: ()}
    roles = WholeRoles(tiny_backbone(tiny_folder), stacks, [GENERATOR], {COLD_START: str(tmp_path)})
    biases = {role: roles.base_of(role).proj_out.bias for role in stacks}
    assert roles.own == (GENERATOR, EMA)
    assert all(torch.equal(biases[role], biases[TEACHER] + 1) for role in (GENERATOR, EMA, COLD_START))
    assert biases[GENERATOR].requires_grad and not biases[COLD_START].requires_grad


@pytest.mark.parametrize("reshards", [True, False])
def test_a_sharded_average_is_drawn_with_after_each_move_as_a_whole_one(tiny_folder, process_group, reshards):
    """What FSDP2 has gathered in a pass without gradient it keeps: it would be the average from before the move."""
    sharding = Sharding(init_device_mesh("cpu", (1,)), reshard_after_forward=reshards)
    both = [
        WholeRoles(tiny_backbone(tiny_folder), STACKS, [GENERATOR, FAKE_SCORE], {}, sharding=each)
        for each in (None, sharding)
    ]
    latents = torch.randn(2, *both[0].backbone.latent_shape(), generator=torch.Generator().manual_seed(0))
    conditioning = both[0].backbone.encode_prompts(["a red circle", "two blue crosses"])
    seen = []
    with torch.no_grad():
        for roles in both:
            drawn = [roles.velocity(EMA, latents, 0.6, conditioning)]
            for parameter in roles.parameters_of(GENERATOR):
                parameter.add_(0.1)
            for _ in range(2):
                roles.move_average(0.5)
                drawn.append(roles.velocity(EMA, latents, 0.6, conditioning))
            seen.append(drawn)
    for one, other in zip(*seen, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert (seen[0][0] - seen[0][1]).abs().max() > 1e-2 and (seen[0][1] - seen[0][2]).abs().max() > 1e-3
