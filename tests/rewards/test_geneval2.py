"""GenEval2's arithmetic on given probabilities, and a tiny random Qwen3-VL through the real path."""

import pytest
import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor, Qwen3VLVideoProcessor

from rtdmd_lightning.rewards.geneval2 import GenEval2Reward, answer_spellings, questions, soft_tifa
from rtdmd_lightning.utils.errors import UserError
from tests.support import qwen
from tests.support.scorers import pictures, to_pil

ASKED = {"vqa_list": [["How many cows are in the image?", "four"], ["Are the cows plastic?", "Yes"], ["A cow?", "Yes"]]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen3")
    processor = qwen.processor(Qwen3VLProcessor, Qwen3VLVideoProcessor, patch_size=4)
    processor.save_pretrained(folder)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 1, "head_dim": 8, "vocab_size": len(processor.tokenizer), "rope_parameters": rope}
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "patch_size": 4}
    vision |= {"out_hidden_size": 16, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    torch.manual_seed(0)
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **qwen.special_ids())
    model = Qwen3VLForConditionalGeneration(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def reward(folder):
    reward = GenEval2Reward(str(folder), batch_size=2)
    reward.to(torch.device("cpu"))
    return reward


def test_soft_tifa_is_a_geometric_mean():
    assert soft_tifa(torch.tensor([0.5, 0.5, 0.5])).item() == pytest.approx(0.5)
    assert soft_tifa(torch.tensor([1.0, 0.25])).item() == pytest.approx(0.5)
    assert soft_tifa(torch.tensor([0.9, 0.1, 0.3])).item() == pytest.approx(0.027 ** (1 / 3))
    assert soft_tifa(torch.tensor([1.0, 0.0])).item() == 0
    assert soft_tifa(torch.tensor([1e-30] * 5)).item() == pytest.approx(1e-30)


def test_arithmetic_on_given_token_probabilities(reward, monkeypatch):
    """P(right) sums the first tokens of all spellings once each: "4" or " " or "f" or "F" for four, "y", "Y", " " for yes."""
    encode = reward._processor.tokenizer.encode
    probabilities = torch.zeros(3, len(reward._processor.tokenizer))
    for text, row in {
        "f": [0.2, 0, 0],
        "4": [0.3, 0, 0],
        " ": [0.1, 0.05, 0],
        "Y": [0.1, 0.5, 0],
        "y": [0, 0.25, 0.5],
    }.items():
        probabilities[:, encode(text)[0]] = torch.tensor(row)
    calls = iter([probabilities[:2], probabilities[2:]])
    monkeypatch.setattr(reward, "_first_token_probabilities", lambda picture, asked: next(calls))
    score = reward.score(torch.rand(1, 3, 16, 16), ["four plastic cows"], [ASKED])
    assert score.item() == pytest.approx((0.6 * 0.8 * 0.5) ** (1 / 3))


def test_the_real_path_is_what_generate_would_say_first(reward):
    """Batches of questions, padded, against the published evaluation's way: one question at a time, `generate`'s scores."""
    images = pictures(2, 24)
    expected = []
    for image in images:
        chances = []
        for question, answer in ASKED["vqa_list"]:
            content = [
                {"type": "image", "image": to_pil(image)},
                {"type": "text", "text": f"{question} Answer in one word."},
            ]
            inputs = reward._processor.apply_chat_template(
                [{"role": "user", "content": content}],
                tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt",
            )  # fmt: skip
            output = reward._model.generate(
                **inputs, max_new_tokens=1, do_sample=False, output_scores=True, return_dict_in_generate=True
            )
            firsts = {reward._processor.tokenizer.encode(text)[0] for text in answer_spellings(answer)}
            chances.append(output.scores[0].softmax(-1)[0, sorted(firsts)].sum())
        expected.append(torch.stack(chances).log().mean().exp())
    scores = reward.score(images, ["", ""], [ASKED, ASKED])
    assert scores.shape == (2,) and scores.dtype == torch.float32
    torch.testing.assert_close(scores, torch.stack(expected), rtol=1e-4, atol=0)
    assert (scores[0] / scores[1]).log().abs() > 1e-3  # the picture is looked at


@pytest.mark.parametrize(
    ("answer", "spellings"),
    [
        ("Yes", ["yes", " yes", "Yes", " Yes"]),
        ("four", ["four", " four", "Four", " Four", "4", " 4"]),
        ("ten ", ["ten", " ten", "Ten", " Ten", "10", " 10"]),
    ],
)
def test_spellings(answer, spellings):
    assert answer_spellings(answer) == spellings


@pytest.mark.parametrize("entry", [{}, {"vqa_list": []}, {"vqa_list": [["Is it?", " "]]}])
def test_a_prompt_without_questions_is_told(entry):
    with pytest.raises(UserError, match="use the GenEval2 prompt set"):
        questions(entry)
