"""The embeddings in memory: each prompt is encoded once, whatever the batches look like."""

import torch

from rtdmd_lightning.data import embeddings
from rtdmd_lightning.data.embeddings import PromptEmbedder
from rtdmd_lightning.utils.transfer import send
from tests.support.counting_backbone import CountingBackbone, assert_encodes

CPU, META = torch.device("cpu"), torch.device("meta")
ROW_BYTES = 4 * (3 * 2 + 5)  # of what CountingBackbone makes of a prompt


def embedder(capacity: int = 100) -> tuple[PromptEmbedder, CountingBackbone]:
    backbone = CountingBackbone()
    return PromptEmbedder(backbone, capacity * ROW_BYTES), backbone


def test_each_prompt_is_encoded_once():
    embed, backbone = embedder()
    for prompts in (["a", "bb"], ["bb", "ccc"], ["ccc", "a", "bb"], [""], ["", "a"]):
        assert_encodes(embed(prompts, CPU), prompts)
    assert backbone.calls == [["a", "bb"], ["ccc"], [""]]


def test_order_and_duplicates_are_kept():
    """New and cached prompts mixed; a duplicate costs nothing."""
    embed, backbone = embedder()
    embed(["bb"], CPU)
    prompts = ["ccc", "a", "bb", "a", "ccc", "ccc", "bb"]
    assert_encodes(embed(prompts, CPU), prompts)
    assert backbone.calls == [["bb"], ["ccc", "a"]]


def test_the_least_recently_used_prompt_is_forgotten():
    embed, backbone = embedder(capacity=2)
    embed(["a", "bb"], CPU)
    embed(["a"], CPU)  # a is fresher than bb now
    embed(["ccc"], CPU)  # bb goes
    assert len(backbone.calls) == 2
    embed(["a", "ccc"], CPU)
    assert len(backbone.calls) == 2
    embed(["bb"], CPU)  # a goes
    embed(["ccc"], CPU)
    assert backbone.calls == [["a", "bb"], ["ccc"], ["bb"]]
    embed(["a"], CPU)
    assert backbone.calls[3:] == [["a"]]


def test_a_batch_larger_than_the_cache():
    """Everything in it is served, though it cannot all stay; a cached prompt that the batch pushes out is served too."""
    embed, backbone = embedder(capacity=2)
    embed(["a"], CPU)
    prompts = ["bb", "ccc", "a", "dddd", "bb"]
    assert_encodes(embed(prompts, CPU), prompts)
    assert backbone.calls == [["a"], ["bb", "ccc", "dddd"]]
    embed(["dddd", "bb"], CPU)
    assert len(backbone.calls) == 2


def test_the_bound_is_one_of_bytes():
    """A byte too few for two prompts holds one; one that is larger than all of it is served and not kept."""
    for capacity, kept in ((2 * ROW_BYTES, ["a", "bb"]), (2 * ROW_BYTES - 1, ["bb"]), (ROW_BYTES - 1, [])):
        embed = PromptEmbedder(CountingBackbone(), capacity)
        for _ in range(2):
            assert_encodes(embed(["a", "bb"], CPU), ["a", "bb"])
        assert list(embed._memory._rows) == kept


def test_a_forgotten_prompt_frees_its_memory():
    """A cached row owns its storage: one that stays does not hold on to the batch that it was encoded with."""
    embed, _ = embedder()
    embed(["a", "bb", "ccc"], CPU)
    for row in embed._memory._rows.values():
        for tensor in (row.embeds, row.pooled):
            assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_what_is_handed_out_is_not_the_cache():
    """A caller that writes into its conditioning spoils nothing."""
    embed, _ = embedder()
    embed(["a", "bb"], CPU).embeds.zero_()
    embed(["bb"], CPU).embeds.zero_()
    assert_encodes(embed(["bb"], CPU), ["bb"])


def test_the_result_goes_to_the_device_and_the_cache_stays_on_the_cpu():
    embed, _ = embedder()
    conditioning = embed(["a", "a"], META)
    assert conditioning.embeds.device.type == conditioning.pooled.device.type == "meta"
    assert_encodes(embed(["a"], CPU), ["a"])


def test_what_stays_on_the_device_is_sent_once(monkeypatch):
    sent = []
    monkeypatch.setattr(embeddings, "send", lambda tensors, device: sent.extend(tensors) or send(tensors, device))
    embed, backbone = embedder()
    assert embed(["a", "bb"], META).embeds.shape == (2, 3, 2) and len(sent) == 2  # of both prompts at once
    embed(["bb", "a", "bb"], META)
    assert len(sent) == 2
    embed(["ccc", "a"], META)
    assert [len(tensor) for tensor in sent[2:]] == [1, 1]
    assert backbone.calls == [["a", "bb"], ["ccc"]]


def test_where_nothing_may_stay_on_the_device_all_is_sent_again(monkeypatch):
    sent = []
    monkeypatch.setattr(embeddings, "send", lambda tensors, device: sent.extend(tensors) or send(tensors, device))
    embed, backbone = embedder()
    backbone.embeddings_on_device = 0
    for _ in range(2):
        embed(["a"], META)
    assert len(sent) == 4 and backbone.calls == [["a"]]
