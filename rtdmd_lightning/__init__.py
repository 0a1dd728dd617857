"""RTDMD: few-step text-to-image generators, distilled and then reinforced. Its commands are modules, as `rtdmd_lightning.fit`.

`from rtdmd_lightning import CPSScheduler` is the method's sampler for stock diffusers pipelines.

"METHOD section N" in docstrings and configs is section N of `method/README.md`: the equations, and what of them is the paper's.
"""

import logging
from typing import TYPE_CHECKING, Any

from rtdmd_lightning.utils.quiet import quiet_libraries

if TYPE_CHECKING:
    from rtdmd_lightning.sampling.scheduler import CPSScheduler

__all__ = ["CPSScheduler"]

quiet_libraries()
# diffusers imports bitsandbytes where it is installed, which then tells of an optional kernel for the CPU.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    """Imported at its first use: diffusers takes seconds, and whoever wants any module here imports the package first."""
    if name == "CPSScheduler":
        from rtdmd_lightning.sampling.scheduler import CPSScheduler

        return CPSScheduler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
