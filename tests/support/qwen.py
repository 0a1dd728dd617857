"""Processors of tiny Qwen models: the real classes, a vocabulary of single bytes, and the published form of a conversation."""

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessor

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Every byte a token, plus a few whole words, plus Qwen's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: number for number, symbol in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=SPECIAL[0], eos_token=SPECIAL[2])
    made.add_tokens(SPECIAL, special_tokens=True)
    return made


def processor(processor_class: Any, video_processor_class: Any, patch_size: int) -> Any:
    """One of Qwen's processors around the tiny tokenizer."""
    images = Qwen2VLImageProcessor(patch_size=patch_size, min_pixels=16 * patch_size**2, max_pixels=64 * patch_size**2)
    return processor_class(
        images, tokenizer(), video_processor_class(patch_size=patch_size), chat_template=CHAT_TEMPLATE
    )


def special_ids() -> dict[str, int]:
    """What a Qwen-VL configuration wants to know of the tokenizer."""
    names = {
        "image": "<|image_pad|>",
        "video": "<|video_pad|>",
        "vision_start": "<|vision_start|>",
        "vision_end": "<|vision_end|>",
    }
    made = tokenizer()
    return {f"{name}_token_id": made.convert_tokens_to_ids(token) for name, token in names.items()}
