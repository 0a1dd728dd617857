"""Makes the model code of `hpsv2` 1.2.0 and `image-reward` 1.5 importable beside current transformers, timm and torch.

Both packages are installed without their dependencies (requirements-no-deps.txt), whose pins contradict this project's. Only
their model code is wanted, and it still works once these obstacles are out of the way. Everything lent for an import is
taken back after it: site-packages is not written to, and neither `sys.modules` nor transformers stays changed.

What is in the way, and what is done about it:

* `hpsv2/__init__` wants clint; `ImageReward/__init__` and `ImageReward/models/__init__` want openai's `clip` and `datasets`.
  They are passed by: an empty module with the package's path stands in.
* The `hpsv2` wheel lacks `bpe_simple_vocab_16e6.txt.gz`. Its tokenizer is told that it lives in the folder of `open_clip`, which
  has the file.
* `hpsv2`'s factory has a stray `from turtle import forward`, which wants Tk: a stand-in.
* `ImageReward` imports fairscale's checkpoint wrapper, used in training alone: torch's own.
* It imports three helpers from where transformers 5 no longer has them: two come from their new place; the third, pruning of
  heads, is never called.
* Its BERT calls `get_head_mask` and `invert_attention_mask`, which transformers 5 dropped: given to its class.
* It calls `init_weights` in a manner that transformers 5 refuses: left out, the values come from the checkpoint.
* Its tokenizer is always the hub's `bert-base-uncased`, and reads an attribute that transformers 5 renamed: `bert_tokenizer`
  makes the same from a vocabulary file.
"""

import contextlib
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from rtdmd_lightning.utils.errors import UserError


@cache
def hpsv2_open_clip() -> ModuleType:
    """The module `hpsv2.src.open_clip`: the fork of open_clip that HPS v2.1 was trained with."""
    package, name = _bare_package("hpsv2"), "hpsv2.src.open_clip"
    source = Path(package.__path__[0]) / "src" / "open_clip" / "tokenizer.py"
    with _lent_modules(hpsv2=package, turtle=_module("turtle", forward=None)), _without_timms_warnings():
        sys.modules[f"{name}.tokenizer"] = _module_with_open_clips_vocabulary(f"{name}.tokenizer", source)
        return importlib.import_module(name)


@cache
def image_reward() -> ModuleType:
    """The module `ImageReward.ImageReward`, whose class of that name is the model. See `bert_tokenizer` before using it."""
    package = _bare_package("ImageReward")
    models = _module("ImageReward.models", __path__=[str(Path(package.__path__[0]) / "models")])
    wrapper = _module("checkpoint_activations", checkpoint_wrapper=_torch_checkpoint_wrapper)
    fairscale = {name: _module(name, __path__=[]) for name in ("fairscale", "fairscale.nn", "fairscale.nn.checkpoint")}
    fairscale["fairscale.nn.checkpoint.checkpoint_activations"] = wrapper
    lent = {"ImageReward": package, "ImageReward.models": models} | fairscale
    with _lent_modules(**lent), _lent_transformers_helpers(), _without_timms_warnings():
        module = importlib.import_module("ImageReward.ImageReward")
        bert = importlib.import_module("ImageReward.models.BLIP.med").BertPreTrainedModel
    bert.init_weights = _leave_weights_alone
    bert.get_head_mask = _get_head_mask
    bert.invert_attention_mask = _invert_attention_mask
    return module


def bert_tokenizer(vocabulary: str) -> Any:
    """BLIP's tokenizer from BERT's `vocab.txt`: two more tokens, [DEC] that begins a text and [ENC] for the encoder.

    Raises UserError where the file cannot be read.
    """
    from transformers import BertTokenizer

    try:
        words = Path(vocabulary).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"imagereward: cannot read the vocabulary {vocabulary}: {error}") from error
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    tokenizer.enc_token_id = tokenizer.convert_tokens_to_ids("[ENC]")
    return tokenizer


def _bare_package(name: str) -> ModuleType:
    """A package whose submodules can be imported though its `__init__` has not run."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        raise UserError(f"the package {name} is not installed: pip install --no-deps -r requirements-no-deps.txt")
    return _module(name, __path__=list(spec.submodule_search_locations))


def _module(name: str, **content: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(content)
    return module


def _module_with_open_clips_vocabulary(name: str, source: Path) -> ModuleType:
    """The module of a file that looks for its vocabulary next to `__file__`, as if it were in open_clip's folder."""
    spec = importlib.util.spec_from_file_location(name, source)
    home = importlib.util.find_spec("open_clip.tokenizer")
    assert spec is not None and spec.loader is not None and home is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = home.origin
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _lent_modules(**modules: ModuleType) -> Iterator[None]:
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


@contextlib.contextmanager
def _without_timms_warnings() -> Iterator[None]:
    """Both packages import timm's parts by their former names, which are still there."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Importing from timm", FutureWarning)
        yield


@contextlib.contextmanager
def _lent_transformers_helpers() -> Iterator[None]:
    from transformers import modeling_utils, pytorch_utils

    helpers = {
        "apply_chunking_to_forward": pytorch_utils.apply_chunking_to_forward,
        "prune_linear_layer": pytorch_utils.prune_linear_layer,
        "find_pruneable_heads_and_indices": None,
    }
    vars(modeling_utils).update(helpers)
    try:
        yield
    finally:
        for name in helpers:
            delattr(modeling_utils, name)


def _torch_checkpoint_wrapper(module: torch.nn.Module) -> torch.nn.Module:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    return checkpoint_wrapper(module)


def _leave_weights_alone(self: Any) -> None:
    pass


def _get_head_mask(self: Any, head_mask: None, layers: int) -> list[None]:
    assert head_mask is None  # ImageReward masks no heads
    return [None] * layers


def _invert_attention_mask(self: Any, mask: Tensor) -> Tensor:
    """`[B, L]` ones and zeros to `[B, 1, 1, L]`: 0 where attention goes, else the lowest number of the model's dtype."""
    return (1.0 - mask[:, None, None, :].to(self.dtype)) * torch.finfo(self.dtype).min
