"""HPSv3: how people rank images for a prompt, by a Qwen2-VL-7B with a small head on one special token (METHOD section 6).

The published package pins transformers 4.45; here its checkpoint `HPSv3.safetensors` fills transformers' own Qwen2-VL. What
the package does and the checkpoint relies on:

* The prompt is `hpsv3_instruction.txt` (published with HPSv3 under the MIT licence), which ends in the new token `<|Reward|>`.
  The head reads the last hidden state there and gives a mean and a log-variance; the mean is the score.
* The checkpoint's vocabulary is the tokenizer's length with the new token, not the base model's padded size.
* The image is resized to about 256 tiles of 28 x 28 pixels.
* Its forward pass hands the language model no positions, which then numbers all tokens, the image's too, one after the other
  instead of in Qwen2-VL's three dimensions. It was trained so.

Keys are those of transformers 4.45 (`visual.…`, `model.layers.…`) or of later ones (`model.visual.…`). No published file could
be had where this was written: the layout is read off the package's code, and no score has been compared with the original's.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rtdmd_lightning.rewards.base import Reward, to_pil
from rtdmd_lightning.rewards.state import build_empty, fill, read_state
from rtdmd_lightning.rewards.weights import Source, loading
from rtdmd_lightning.utils.errors import UserError

HUB_ID = "MizzenAI/HPSv3"
FILENAME = "HPSv3.safetensors"
BASE_HUB_ID = "Qwen/Qwen2-VL-7B-Instruct"
REWARD_TOKEN = "<|Reward|>"
PIXELS = 256 * 28 * 28
EMBEDDING = "model.language_model.embed_tokens.weight"
INSTRUCTION = Path(__file__).with_name("hpsv3_instruction.txt")


class HPSv3Network(nn.Module):
    """Qwen2-VL with the reward head. Attribute names are the checkpoint's."""

    def __init__(self, config: Any) -> None:
        from transformers import Qwen2VLModel

        super().__init__()
        self.model = Qwen2VLModel(config)
        self.rm_head = nn.Sequential(
            nn.Linear(config.text_config.hidden_size, 1024),
            nn.ReLU(),
            nn.Dropout(0.05),
            nn.Linear(1024, 16),
            nn.ReLU(),
            nn.Linear(16, 2),
        )

    def forward(self, inputs: dict[str, Tensor], reward_token_id: int) -> Tensor:
        """A right-padded batch with one reward token a row, to `[B, 2]` float32: mean and log-variance."""
        tokens = inputs["input_ids"]
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand(3, *tokens.shape)
        hidden = self.model(**inputs, position_ids=positions).last_hidden_state
        return self.rm_head(hidden[tokens == reward_token_id].float())


class HPSv3Reward(Reward):
    """About 11.7 for a good picture.

    Args:
        weights: folder, file or hub id of the checkpoint; without it see `weights.locate`.
        base: folder or hub id of Qwen2-VL-7B-Instruct, for its configuration, tokenizer and image processor alone (reward
            `hpsv3/base` in the cache).
        batch_size: images that the model reads at a time.
    """

    name = "hpsv3"
    differentiable = False

    def __init__(self, weights: str | None = None, base: str | None = None, batch_size: int = 8) -> None:
        self.weights = weights
        self.base = base
        self.batch_size = batch_size

    def sources(self) -> list[Source]:
        return [Source("hpsv3/base", BASE_HUB_ID, self.base), Source(self.name, HUB_ID, self.weights, FILENAME)]

    def load(self) -> None:
        from transformers import AutoConfig, AutoProcessor

        base = self.sources()[0].locate()
        with loading("hpsv3/base", base):
            config = AutoConfig.from_pretrained(base)
            self._processor: Any = AutoProcessor.from_pretrained(
                base, padding_side="right", min_pixels=PIXELS, max_pixels=PIXELS
            )
        self._processor.tokenizer.add_tokens([REWARD_TOKEN], special_tokens=True)
        self._token_id = self._processor.tokenizer.convert_tokens_to_ids(REWARD_TOKEN)
        path = self.sources()[1].locate()
        self._network = load_network(config, path, tokens=len(self._processor.tokenizer))

    def networks(self) -> list[nn.Module]:
        return [self._network]

    @torch.no_grad()
    def score(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        means = []
        for start in range(0, len(prompts), self.batch_size):
            part = slice(start, start + self.batch_size)
            inputs = self._inputs(images[part], prompts[part])
            with torch.autocast(images.device.type, enabled=False):
                means.append(self._network(inputs, self._token_id)[:, 0])
        return torch.cat(means).to(images.device)

    def _inputs(self, images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        for prompt in prompts:
            if REWARD_TOKEN in prompt:
                raise UserError(f"hpsv3: a prompt must not hold {REWARD_TOKEN}: {prompt}")
        instruction = INSTRUCTION.read_text(encoding="utf-8")
        conversations = [
            [
                {
                    "role": "user",
                    "content": [{"type": "image"}, {"type": "text", "text": instruction.format(text_prompt=prompt)}],
                }
            ]
            for prompt in prompts
        ]
        texts = self._processor.apply_chat_template(conversations, tokenize=False, add_generation_prompt=True)
        inputs = self._processor(text=texts, images=to_pil(images), padding=True, return_tensors="pt")
        wanted = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")
        return {key: inputs[key].to(self._network.rm_head[0].weight.device) for key in wanted}


def load_network(config: Any, path: str, tokens: int) -> HPSv3Network:
    """The network with the checkpoint's values, the head in float32. Raises UserError for a vocabulary of another size."""
    state = current_keys(read_state("hpsv3", path))
    if EMBEDDING in state and len(state[EMBEDDING]) < tokens:
        raise UserError(
            f"hpsv3: {path} knows {len(state[EMBEDDING])} tokens, {REWARD_TOKEN} needs {tokens}; another base?"
        )
    if EMBEDDING in state:
        config.text_config.vocab_size = len(state[EMBEDDING])
    network = build_empty(lambda: HPSv3Network(config))
    fill(network, state, reward="hpsv3", path=path)
    network.rm_head.float()
    return network


def current_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's keys as transformers names them today; those of 4.45 had the vision tower beside `model`."""

    def current(key: str) -> str:
        if key.startswith("visual."):
            return f"model.{key}"
        if key.startswith(("model.layers.", "model.embed_tokens.", "model.norm.")):
            return key.replace("model.", "model.language_model.", 1)
        return key

    return {current(key): tensor for key, tensor in state.items()}
