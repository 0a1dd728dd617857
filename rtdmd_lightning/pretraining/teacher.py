"""Training the toy world's teacher: an SD3 transformer and its two CLIP text encoders, by flow matching on VAE latents."""

import lightning as L
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rtdmd_lightning.shapes.prompts import held_out_prompts
from rtdmd_lightning.shapes.scoring import strict_scores, teacher_images
from rtdmd_lightning.shapes.text import JOINT_WIDTH, MAX_PROMPT_TOKENS, build_text_encoder, build_tokenizer

HIDDEN, HEAD_WIDTH, LAYERS = 192, 64, 5
LATENT_SIZE = 8
BATCH_SIZE = 64
CAPTION_DROPOUT = 0.1
WARM_UP_STEPS = 300
# The prompt's T5 part is zeros (see text.py): one of them in training, and in this project's own sampling. Stock diffusers
# feeds 256, so every so often a smaller batch has as many, lest the plain pipeline call surprise the model.
T5_TOKENS, STOCK_T5_TOKENS, STOCK_EVERY, STOCK_BATCH = 1, 256, 24, 12


def build_transformer() -> SD3Transformer2DModel:
    """An untrained transformer whose output starts at zero."""
    transformer = SD3Transformer2DModel(
        sample_size=LATENT_SIZE,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=LAYERS,
        attention_head_dim=HEAD_WIDTH,
        num_attention_heads=HIDDEN // HEAD_WIDTH,
        caption_projection_dim=HIDDEN,
        joint_attention_dim=JOINT_WIDTH,
        pooled_projection_dim=JOINT_WIDTH,
        pos_embed_max_size=LATENT_SIZE,
        qk_norm="rms_norm",
    )
    for module in transformer.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)
            torch.nn.init.zeros_(module.bias)
    modulations = [
        norm.linear for name, norm in transformer.named_modules() if name.endswith(("norm1", "norm1_context"))
    ]
    for linear in (*modulations, transformer.norm_out.linear, transformer.proj_out):
        torch.nn.init.zeros_(linear.weight)
    return transformer


class Teacher(torch.nn.Module):
    """Transformer and text encoders in one module, so that one EMA covers all that is trained."""

    def __init__(self, tokenizer) -> None:
        super().__init__()
        self.transformer = build_transformer()
        self.text_encoder = build_text_encoder(tokenizer)
        self.text_encoder_2 = build_text_encoder(tokenizer)

    def forward(self, latents: torch.Tensor, sigma: torch.Tensor, tokens: torch.Tensor, t5_tokens: int) -> torch.Tensor:
        """Velocity `[B, 4, 8, 8]` for noisy latents, levels `[B]` and prompt tokens `[B, 13]`."""
        encoded = [encoder(tokens, output_hidden_states=True) for encoder in (self.text_encoder, self.text_encoder_2)]
        embeds = torch.cat([output.hidden_states[-2] for output in encoded], dim=-1)
        silence = embeds.new_zeros(len(embeds), t5_tokens, JOINT_WIDTH)
        return self.transformer(
            hidden_states=latents,
            encoder_hidden_states=torch.cat([embeds, silence], dim=1),
            pooled_projections=torch.cat([output.text_embeds for output in encoded], dim=-1),
            timestep=1000 * sigma,
            return_dict=False,
        )[0]


class TeacherModule(L.LightningModule):
    """Flow matching with logit-normal levels; AdamW, warm-up, then a constant rate; the EMA is the result.

    `vae` must carry its latent statistics (`set_latent_statistics`); latents in the batches are in the VAE's own scale.
    """

    def __init__(self, vae, *, learning_rate: float = 1.5e-3) -> None:
        super().__init__()
        self.tokenizer = build_tokenizer()
        self.teacher = Teacher(self.tokenizer)
        self.ema = AveragedModel(self.teacher, multi_avg_fn=get_ema_multi_avg_fn(0.999))
        self.vae = vae.requires_grad_(False)
        self.learning_rate = learning_rate
        self.empty_tokens = self.tokenize([""])[0]

    def tokenize(self, prompts: list[str]) -> torch.Tensor:
        padded = self.tokenizer(prompts, padding="max_length", max_length=MAX_PROMPT_TOKENS, return_tensors="pt")
        return padded.input_ids

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        latents, tokens = batch
        t5_tokens = T5_TOKENS
        if batch_idx % STOCK_EVERY == STOCK_EVERY - 1:
            latents, tokens, t5_tokens = latents[:STOCK_BATCH], tokens[:STOCK_BATCH], STOCK_T5_TOKENS
        x0 = (latents - self.vae.config.shift_factor) * self.vae.config.scaling_factor
        dropped = torch.rand(len(tokens), 1, device=self.device) < CAPTION_DROPOUT
        tokens = torch.where(dropped, self.empty_tokens.to(self.device), tokens)
        sigma = torch.sigmoid(torch.randn(len(x0), device=self.device) + 0.7)
        noise = torch.randn_like(x0)
        noisy = torch.lerp(x0, noise, sigma.view(-1, 1, 1, 1))
        loss = torch.nn.functional.mse_loss(self.teacher(noisy, sigma, tokens, t5_tokens).float(), noise - x0)
        self.log("teacher/loss", loss, prog_bar=True)
        return loss

    def on_train_batch_end(self, outputs, batch, batch_idx: int) -> None:
        self.ema.update_parameters(self.teacher)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(
            self.teacher.parameters(), lr=self.learning_rate, betas=(0.9, 0.99), weight_decay=0.01
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARM_UP_STEPS))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def pipeline(self) -> StableDiffusion3Pipeline:
        """The EMA weights as a diffusers pipeline (without a T5)."""
        teacher = self.ema.module
        return StableDiffusion3Pipeline(
            transformer=teacher.transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=self.vae,
            text_encoder=teacher.text_encoder,
            tokenizer=self.tokenizer,
            text_encoder_2=teacher.text_encoder_2,
            tokenizer_2=self.tokenizer,
            text_encoder_3=None,
            tokenizer_3=None,
        )


class ScoreTeacher(L.Callback):
    """Every `every_n_steps`: strict score on held-out prompts at 28 steps with CFG and at 4 steps without, logged."""

    def __init__(self, every_n_steps: int, per_tag: int = 25) -> None:
        self.every_n_steps = every_n_steps
        self.metadata = held_out_prompts(per_tag)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        if trainer.global_step % self.every_n_steps:
            return
        prompts = [entry["prompt"] for entry in self.metadata]
        for name, steps, guidance_scale in (("28_steps_cfg", 28, 3.0), ("4_steps", 4, 1.0)):
            images = teacher_images(
                pl_module.pipeline(),
                prompts,
                steps=steps,
                guidance_scale=guidance_scale,
                max_sequence_length=T5_TOKENS,
                seed=0,
            )
            scores = strict_scores(images, self.metadata)
            pl_module.log_dict({f"eval_by_tag/{name}/{tag}": score for tag, score in scores.items()})
            print(trainer.global_step, name, {tag: round(score, 3) for tag, score in scores.items()}, flush=True)
