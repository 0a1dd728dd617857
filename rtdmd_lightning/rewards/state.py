"""Networks built without values and filled from one file of weights: how the scorers read checkpoints of a billion numbers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rtdmd_lightning.utils.errors import UserError


def build_empty(build: Callable[[], Any]) -> Any:
    """A network whose parameters have shapes but no values, for `fill`: no time goes into random numbers. Buffers are real."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return build()


def read_state(reward: str, path: str) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file or a `torch.save` one, which may hold them under `state_dict` or `model`.

    Raises UserError for a file that is not of either kind.
    """
    if path.endswith(".safetensors"):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"{reward}: {path} is not a file of weights, download it again: {error}") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises half a dozen types for a file that is cut short or of another kind
        raise UserError(f"{reward}: {path} is not a file of weights, download it again: {error}") from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{reward}: {path} holds no state_dict")
    return content


def fill(network: nn.Module, state: dict[str, Tensor], *, reward: str, path: str) -> None:
    """Give an empty network its values, in the file's dtypes, frozen and in eval mode.

    What the file holds beyond the network's own keys is left out: it cannot change a score. Raises UserError where a key is
    missing or has another shape.
    """
    wanted = network.state_dict()
    missing = sorted(wanted.keys() - state.keys())
    if missing:
        raise UserError(f"{reward}: {path} lacks {len(missing)} of {len(wanted)} tensors, {missing[0]} among them")
    for key, tensor in wanted.items():
        if tensor.shape != state[key].shape:
            raise UserError(
                f"{reward}: {path}: {key} has the shape {tuple(state[key].shape)}, wanted {tuple(tensor.shape)}"
            )
    network.load_state_dict({key: state[key] for key in wanted}, assign=True)
    network.requires_grad_(False).eval()


def whole_pretrained(model_class: Any, reward: str, source: str) -> Any:
    """`from_pretrained` in the published dtype, frozen and in eval mode; UserError where it would make up a weight."""
    model, report = model_class.from_pretrained(source, dtype="auto", output_loading_info=True)
    lacking = {*map(str, report["missing_keys"])} & dict(model.named_parameters()).keys()
    lacking |= {str(mismatch) for mismatch in report["mismatched_keys"]}
    if lacking:
        raise UserError(f"{reward}: {source} lacks {len(lacking)} of its weights, {min(lacking)} among them")
    return model.requires_grad_(False).eval()
