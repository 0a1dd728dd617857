"""Bytes that tensors hold, counted as they come and go: of real tensors and of fake ones alike."""

import warnings
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorConverter, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only
from torch.utils.checkpoint import checkpoint

READ_A_NUMBER = torch.ops.aten._local_scalar_dense.default
ASKS_FOR_METADATA = torch.ops.prim.device.default


class AllocationTracker(TorchDispatchMode):
    """Counts the storages that operations make while it is active, each once however many tensors share it.

    `current` falls when a storage is let go, also outside of the mode; `peak` is the highest `current` since `restart`. What a
    kernel uses inside itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = self.peak = 0
        self._known: set[int] = set()

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Count what was made before."""
        for tensor in tensors:
            self._count(tensor.untyped_storage())

    def restart(self) -> None:
        """Let `peak` begin anew at what is held now."""
        self.peak = self.current

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        result = func(*args, **kwargs or {})
        if func is not ASKS_FOR_METADATA:
            for value in tree_iter(result):
                if isinstance(value, Tensor):
                    self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or not size:
            return
        self._known.add(key)
        self.current += size
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._forget, key, size).atexit = False

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.current -= size


class Unremembered(FakeTensorConverter):
    """Keeps no reference to the fake tensors it makes. `nn.Module.to` refuses fake parameters that others refer to."""

    def set_tensor_memo(self, t: Tensor, v: FakeTensor) -> None:
        return


class ReadableFakeTensors(FakeTensorMode):
    """Fake tensors hold no numbers; where code reads one (is the loss finite?) it reads 1."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.fake_tensor_converter = Unremembered(copy_data=False)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        if func is READ_A_NUMBER:
            dtype = args[0].dtype
            return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1
        return super().__torch_dispatch__(func, types, args, kwargs)


class Float32Normalisation(TorchFunctionMode):
    """Under autocast normalisation layers compute in float32, as on a GPU; a CPU's autocast leaves them in half precision.

    torch switches it off in backward passes: what is computed again there needs one of its own, see `recomputed`.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        if func in (F.layer_norm, F.group_norm) and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map_only(Tensor, Tensor.float, (args, kwargs))
        return func(*args, **kwargs)


def recomputed(module: nn.Module, *args: Any) -> Any:
    """Gradient checkpointing of a module, whose second forward pass normalises as the first one did."""
    return checkpoint(module, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), Float32Normalisation()))


@contextmanager
def faked() -> Iterator[None]:
    """Tensors made in the body have shapes and no numbers."""
    with warnings.catch_warnings(), ReadableFakeTensors():
        warnings.simplefilter("ignore")  # a module without a trainer warns at each of its logs
        yield
