"""A `CLIPModel` of the real class that knows the toy world, trained on its pictures and their prompts."""

from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.functional import gaussian_blur
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    get_cosine_schedule_with_warmup,
)

from rtdmd_lightning.pretraining.clip_pairs import Pairs, all_contents
from rtdmd_lightning.rewards.preprocess import ClipPreprocess
from rtdmd_lightning.shapes.text import MAX_PROMPT_TOKENS, build_tokenizer
from rtdmd_lightning.shapes.world import IMAGE_SIZE
from rtdmd_lightning.utils.files import allow_reading

PATCH, WIDTH, VISION_LAYERS, TEXT_LAYERS, HEADS, JOINT = 8, 128, 4, 2, 4, 64
BATCH_SIZE = 128
WARM_UP_STEPS = 100
MAX_LOGIT_SCALE = 100.0  # CLIP's own bound
MAX_NOISE, MAX_BLUR = 0.06, 0.7  # a student's pictures are neither sharp nor clean


def build_model(tokenizer: CLIPTokenizer) -> CLIPModel:
    """An untrained model for 32x32 pictures and the world's prompts."""
    shared = {"num_attention_heads": HEADS, "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH}
    text = shared | {
        "vocab_size": len(tokenizer),
        "num_hidden_layers": TEXT_LAYERS,
        "max_position_embeddings": MAX_PROMPT_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = shared | {"image_size": IMAGE_SIZE, "patch_size": PATCH, "num_hidden_layers": VISION_LAYERS}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=JOINT))
    # As loud as the pixels from the start: with transformers' 0.02 it takes twice as long to learn what is where.
    torch.nn.init.normal_(model.vision_model.embeddings.position_embedding.weight, std=0.3)
    return model


def build_processor(tokenizer: CLIPTokenizer) -> CLIPProcessor:
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    image_processor = CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=side)
    return CLIPProcessor(image_processor=image_processor, tokenizer=tokenizer)


class ClipModule(L.LightningModule):
    """CLIP's symmetric cross-entropy over a batch, and the same of both towers with anchors; AdamW, cosine rate.

    A picture may fulfil several prompts of its batch (`a red circle` and `a circle`); all of those are right, in equal shares.

    An anchor is a learned embedding of one content, used in training alone. Without them `left of` is never learned: to tell `a
    circle left of a square` from its mirror image pays for a tower only once the other does it too, and each waits for the
    other. An anchor waits for nobody.

    Args:
        steps: length of the run, for the learning rate.
        learning_rate: its peak.
    """

    def __init__(self, steps: int, learning_rate: float = 1e-3) -> None:
        super().__init__()
        tokenizer = build_tokenizer()
        self.processor = build_processor(tokenizer)
        self.preprocess = ClipPreprocess.from_processor(self.processor.image_processor)
        self.model = build_model(tokenizer)
        self.anchors = torch.nn.Parameter(torch.randn(len(all_contents()), JOINT))
        self.steps = steps
        self.learning_rate = learning_rate

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        pixels, tokens, content, fulfils = (part.flatten(0, 1) for part in batch)
        images = augment(pixels.float() / 255)
        output = self.model(input_ids=tokens, pixel_values=self.preprocess(images))
        logits, right = output.logits_per_image.float(), fulfils[:, content].float()
        batch_loss = (share_loss(logits, right) + share_loss(logits.T, right.T)) / 2
        scale = self.model.logit_scale.exp()
        anchors = scale * F.normalize(self.anchors, dim=-1).T
        image_loss = share_loss(output.image_embeds @ anchors, fulfils.float())
        prompt_loss = F.cross_entropy(output.text_embeds @ anchors, content)
        losses = {"batch_loss": batch_loss, "image_anchor_loss": image_loss, "prompt_anchor_loss": prompt_loss}
        logged = losses | {"scale": scale, "neighbour_accuracy": neighbour_accuracy(logits, right)}
        self.log_dict({f"clip/{name}": value for name, value in logged.items()}, prog_bar=True)
        return batch_loss + image_loss + prompt_loss

    def on_train_batch_end(self, outputs, batch, batch_idx: int) -> None:
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=float(torch.tensor(MAX_LOGIT_SCALE).log()))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
        schedule = get_cosine_schedule_with_warmup(optimizer, WARM_UP_STEPS, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def share_loss(logits: Tensor, right: Tensor) -> Tensor:
    """Cross-entropy of each row's softmax with equal shares over the columns that are right for it."""
    return F.cross_entropy(logits, right / right.sum(dim=1, keepdim=True))


def neighbour_accuracy(logits: Tensor, right: Tensor) -> Tensor:
    """How often a picture's own prompt beats its neighbour's, where only the own one is right; 2k and 2k+1 are neighbours."""
    own = torch.arange(len(logits), device=logits.device)
    other = own ^ 1
    return (logits[own, own] > logits[own, other])[right[own, other] == 0].float().mean()


def augment(images: Tensor) -> Tensor:
    """`[B, 3, H, W]` in [0, 1]: pixel noise of a random strength for each picture, and half of the time a slight blur."""
    strength = MAX_NOISE * torch.rand(len(images), 1, 1, 1, device=images.device)
    if torch.rand(()) < 0.5:
        images = gaussian_blur(images, kernel_size=[3, 3], sigma=[0.2 + (MAX_BLUR - 0.2) * float(torch.rand(()))] * 2)
    return (images + strength * torch.randn_like(images)).clamp(0, 1)


def batches(module: ClipModule, pairs: Pairs) -> DataLoader:
    """Shuffled batches in which neighbours stay together."""
    prompts = [entry["prompt"] for entry in pairs.metadata]
    tokenizer = module.processor.tokenizer
    tokens = tokenizer(prompts, padding="max_length", max_length=MAX_PROMPT_TOKENS, return_tensors="pt").input_ids
    by_two = [part.unflatten(0, (-1, 2)) for part in (pairs.images, tokens, pairs.content, pairs.fulfils)]
    return DataLoader(TensorDataset(*by_two), BATCH_SIZE // 2, shuffle=True, drop_last=True)


def save_folder(module: ClipModule, output: Path) -> None:
    """Model, tokenizer and image processor; the weights in float16 to halve the file."""
    module.model.half().save_pretrained(output)
    module.processor.image_processor.save_pretrained(output)  # part by part: the layout of the published models
    module.processor.tokenizer.save_pretrained(output)
    allow_reading(output)
