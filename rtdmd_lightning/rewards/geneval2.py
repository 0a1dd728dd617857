"""GenEval2: a vision-language model is asked about every detail of the prompt (Soft-TIFA, METHOD section 6).

The score of an image is the geometric mean, over its questions, of the probability that the model's first token answers
rightly. Questions and answers come with the prompt: `vqa_list`, as in GenEval2's published `geneval2_data.jsonl`. The wording
of the question and the spellings that count as the answer are those of its evaluation.
"""

from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from rtdmd_lightning.rewards.base import Reward, to_pil
from rtdmd_lightning.rewards.state import whole_pretrained
from rtdmd_lightning.rewards.weights import Source, loading
from rtdmd_lightning.utils.errors import UserError

HUB_ID = "Qwen/Qwen3-VL-8B-Instruct"
QUESTION = "{question} Answer in one word."
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


class GenEval2Reward(Reward):
    """In [0, 1]; one question that is surely answered wrongly makes it 0.

    Args:
        weights: folder or hub id of a Qwen3-VL; without it see `weights.locate`.
        batch_size: questions that the model reads at a time.
    """

    name = "geneval2"
    differentiable = False

    def __init__(self, weights: str | None = None, batch_size: int = 8) -> None:
        self.weights = weights
        self.batch_size = batch_size

    def sources(self) -> list[Source]:
        return [Source(self.name, HUB_ID, self.weights)]

    def load(self) -> None:
        from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

        (source,) = (source.locate() for source in self.sources())
        with loading(self.name, source):
            self._processor: Any = AutoProcessor.from_pretrained(source, padding_side="left")
            self._model: Any = whole_pretrained(Qwen3VLForConditionalGeneration, self.name, source)

    def networks(self) -> list[nn.Module]:
        return [self._model]

    def score(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        asked = [questions(entry) for entry in metadata]
        scores = [
            soft_tifa(self._answer_probabilities(picture, pairs))
            for picture, pairs in zip(to_pil(images), asked, strict=True)
        ]
        return torch.stack(scores).to(images.device)

    @torch.no_grad()
    def _answer_probabilities(self, picture: Image.Image, pairs: list[tuple[str, str]]) -> Tensor:
        """`[Q]`: the probability that the first token is that of a right answer."""
        found = []
        for start in range(0, len(pairs), self.batch_size):
            some = pairs[start : start + self.batch_size]
            probabilities = self._first_token_probabilities(picture, [question for question, _ in some])
            found += [row[self._token_ids(answer)].sum() for row, (_, answer) in zip(probabilities, some, strict=True)]
        return torch.stack(found)

    def _first_token_probabilities(self, picture: Image.Image, asked: list[str]) -> Tensor:
        """`[Q, vocabulary]` float32, of what the model would say first."""
        conversations = [
            [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": text}]}]
            for text in (QUESTION.format(question=question) for question in asked)
        ]
        inputs = self._processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"padding": True, "return_tensors": "pt"},
        ).to(self._model.device)
        with torch.autocast(self._model.device.type, enabled=False):
            return self._model(**inputs, logits_to_keep=1).logits[:, -1].float().softmax(-1)

    def _token_ids(self, answer: str) -> list[int]:
        encoded = [
            self._processor.tokenizer.encode(text, add_special_tokens=False) for text in answer_spellings(answer)
        ]
        return sorted({tokens[0] for tokens in encoded})


def soft_tifa(probabilities: Tensor) -> Tensor:
    """Geometric mean of `[Q]` probabilities."""
    return probabilities.float().log().mean().exp()


def answer_spellings(answer: str) -> list[str]:
    """In small letters and capitalised, a number also in digits, each with and without a space before it."""
    word = answer.strip().lower()
    forms = [word, word.capitalize(), *([str(NUMBERS.index(word))] if word in NUMBERS else [])]
    return [space + form for form in dict.fromkeys(forms) for space in ("", " ")]


def questions(metadata: dict) -> list[tuple[str, str]]:
    """The prompt's questions with their answers. Raises UserError for a prompt without any."""
    pairs = [(question, answer) for question, answer in metadata.get("vqa_list", [])]
    if not pairs or not all(question.strip() and answer.strip() for question, answer in pairs):
        raise UserError(
            "geneval2: the prompt's metadata need a vqa_list of [question, answer]; use the GenEval2 prompt set"
        )
    return pairs
