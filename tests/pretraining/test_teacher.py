"""What the toy world's teacher learns: flow matching from scaled latents, with captions as the pipeline encodes them."""

from types import SimpleNamespace

import pytest
import torch

from rtdmd_lightning.geneval.vocabulary import TAGS
from rtdmd_lightning.pretraining import teacher, vae
from rtdmd_lightning.shapes.text import MAX_PROMPT_TOKENS

PROMPTS = ["a photo of a red circle", "a tidy sketch of a cross above a square", "a icon of two crosses", ""]


@pytest.fixture
def module(small):
    torch.manual_seed(0)
    autoencoder = vae.build_vae()
    autoencoder.register_to_config(shift_factor=0.4, scaling_factor=2.0)
    module = teacher.TeacherModule(autoencoder)
    module.log = lambda *_, **__: None
    return module


def step(module, latents, tokens, batch_idx: int = 0, velocity=torch.zeros_like):
    """The loss of one training step whose prediction is a function of noisy latents and levels; and what was asked for it."""
    asked = SimpleNamespace()

    def forward(noisy, sigma, tokens, t5_tokens):
        vars(asked).update(noisy=noisy, sigma=sigma, tokens=tokens, t5_tokens=t5_tokens)
        return velocity(noisy)

    module.teacher.forward = forward
    return module.training_step((latents, tokens), batch_idx), asked


def randomise(model: torch.nn.Module) -> None:
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)


def test_the_exact_velocity_has_no_loss(module):
    """Known where all pictures are alike: from noisy latents back to the one picture, its latents shifted and scaled."""
    x0 = torch.tensor([1.0, -0.5, 0.0, 2.0]).view(1, 4, 1, 1).expand(8, 4, 8, 8)
    latents = x0 / 2.0 + 0.4
    tokens = module.tokenize(["a photo of a circle"] * 8)
    torch.manual_seed(3)
    loss, asked = step(module, latents, tokens)
    assert loss > 1
    torch.manual_seed(3)
    exact = (asked.noisy - x0) / asked.sigma.view(-1, 1, 1, 1)
    loss, _ = step(module, latents, tokens, velocity=lambda noisy: exact)
    assert loss < 1e-8


def test_levels_are_logit_normal_and_a_tenth_of_the_captions_empty(module):
    count = 4000
    tokens = module.tokenize(PROMPTS[:1]).expand(count, -1)
    _, asked = step(module, torch.zeros(count, 4, 8, 8), tokens)
    logits = torch.logit(asked.sigma)
    assert abs(logits.mean() - 0.7) < 0.05 and abs(logits.std() - 1) < 0.05
    empty = (asked.tokens == module.empty_tokens).all(dim=1)
    kept = (asked.tokens == tokens).all(dim=1)
    assert (empty ^ kept).all()
    assert abs(empty.float().mean() - teacher.CAPTION_DROPOUT) < 0.02
    assert module.empty_tokens.equal(module.tokenize([""])[0])


def test_every_so_often_a_smaller_batch_has_stock_diffusers_t5_tokens(module):
    latents, tokens = torch.zeros(8, 4, 8, 8), module.tokenize(PROMPTS * 2)
    asked = [step(module, latents, tokens, batch_idx)[1] for batch_idx in range(6)]
    assert [(len(one.noisy), one.t5_tokens) for one in asked] == [(8, 1), (8, 1), (4, 256)] * 2


@torch.no_grad()
@pytest.mark.parametrize("t5_tokens", [1, 256])
def test_training_encodes_prompts_as_the_pipeline_does(module, t5_tokens):
    """Which tokens, which hidden layer, in what order, with how many zeros: the velocity is the same."""
    randomise(module.teacher)
    module.ema.update_parameters(module.teacher)  # the first update copies
    pipeline = module.pipeline()
    embeds, _, pooled, _ = pipeline.encode_prompt(
        PROMPTS, None, None, do_classifier_free_guidance=False, max_sequence_length=t5_tokens
    )
    assert embeds.shape[1] == MAX_PROMPT_TOKENS + t5_tokens
    latents, sigma = torch.randn(4, 4, 8, 8), torch.rand(4)
    expected = pipeline.transformer(latents, embeds, pooled, 1000 * sigma, return_dict=False)[0]
    found = module.teacher(latents, sigma, module.tokenize(PROMPTS), t5_tokens)
    assert found.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_an_untrained_teacher_says_nothing(module):
    found = module.teacher(torch.randn(4, 4, 8, 8), torch.rand(4), module.tokenize(PROMPTS), 1)
    assert found.shape == (4, 4, 8, 8) and found.abs().max() == 0


def test_the_ema_follows_and_is_the_result(module):
    """It starts where training is after the first step, then goes a thousandth of the way; the pipeline has its weights."""
    randomise(module.teacher)
    module.on_train_batch_end(None, None, 0)
    first = [parameter.detach().clone() for parameter in module.teacher.parameters()]
    assert all(a.equal(b) for a, b in zip(module.ema.module.parameters(), first, strict=True))
    randomise(module.teacher)
    module.on_train_batch_end(None, None, 1)
    for average, old, new in zip(module.ema.module.parameters(), first, module.teacher.parameters(), strict=True):
        torch.testing.assert_close(average, 0.999 * old + 0.001 * new)
    assert module.pipeline().transformer is module.ema.module.transformer
    assert module.pipeline().scheduler.config.shift == 3


def test_the_optimizer_trains_transformer_and_text_encoders_alone_and_warms_up(module):
    configured = module.configure_optimizers()
    (group,) = configured["optimizer"].param_groups
    assert {id(parameter) for parameter in group["params"]} == {id(p) for p in module.teacher.parameters()}
    assert not any(parameter.requires_grad for parameter in module.vae.parameters())
    rate = configured["lr_scheduler"]["scheduler"].lr_lambdas[0]
    assert [rate(step) for step in (0, 149, 299, 10_000)] == [1 / 300, 0.5, 1.0, 1.0]


def test_the_score_callback_scores_both_ways_of_sampling_now_and_then(module, monkeypatch, capsys):
    logged, asked = {}, []
    draw = teacher.teacher_images
    monkeypatch.setattr(
        teacher, "teacher_images", lambda *args, **kwargs: asked.append(kwargs) or draw(*args, **kwargs)
    )
    module.log_dict = lambda values: logged.update(values)
    callback = teacher.ScoreTeacher(4, per_tag=1)
    for global_step in (1, 2, 3):
        callback.on_train_batch_end(SimpleNamespace(global_step=global_step), module, None, None, 0)
    assert not logged
    callback.on_train_batch_end(SimpleNamespace(global_step=4), module, None, None, 0)
    assert set(logged) == {
        f"eval_by_tag/{name}/{tag}" for name in ("28_steps_cfg", "4_steps") for tag in ("all", *TAGS)
    }
    assert [(one["steps"], one["guidance_scale"]) for one in asked] == [(28, 3.0), (4, 1.0)]
    assert "4 28_steps_cfg {'all': " in capsys.readouterr().out
