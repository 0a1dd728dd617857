"""Bytes that tensors hold, counted as they come and go: of real tensors and of fake ones alike."""

import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

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


class HealthyNumbers(FakeTensorMode):
    """Fake tensors hold no numbers; where code reads one (is the loss finite?) this answers 1."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        if func is READ_A_NUMBER:
            dtype = args[0].dtype
            return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1
        return super().__torch_dispatch__(func, types, args, kwargs)


@contextmanager
def faked() -> Iterator[None]:
    """Tensors made in the body have shapes and no numbers."""
    with warnings.catch_warnings(), HealthyNumbers(allow_non_fake_inputs=True):
        warnings.simplefilter("ignore")  # a module without a trainer warns at each of its logs
        yield


@contextmanager
def normalised_in_float32() -> Iterator[None]:
    """Under autocast normalisation layers compute in float32, as on a GPU; a CPU's autocast leaves them in half precision."""

    def in_float32(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def normalise(*args: Any, **kwargs: Any) -> Tensor:
            if torch.is_autocast_enabled("cpu"):
                args = tuple(value.float() if isinstance(value, Tensor) else value for value in args)
            return function(*args, **kwargs)

        return normalise

    with (
        mock.patch.object(F, "layer_norm", in_float32(F.layer_norm)),
        mock.patch.object(F, "group_norm", in_float32(F.group_norm)),
    ):
        yield
