"""Where a backbone's parts come from."""

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from rtdmd_lightning.models.folder import check_folder, read_config
from rtdmd_lightning.models.identity import weights_digest
from rtdmd_lightning.utils.errors import UserError, first_line, require
from rtdmd_lightning.utils.quiet import without_loading_bars


class Source(Protocol):
    """What `PipelineBackbone` asks for its parts. `pretrained` is a diffusers folder or a hub id."""

    def check(self, pretrained: str, parts: list[str]) -> None:
        """Raises UserError where a part is missing, as far as it can be told without reading weights."""

    def config(self, reader: Any, pretrained: str, part: str) -> dict[str, Any]:
        """A part's config; `reader` is the class of diffusers that it belongs to."""

    def digest(self, pretrained: str, part: str) -> str:
        """What a part's weights are told by."""

    def pipeline(
        self, pipeline_class: Any, pretrained: str, dtypes: dict[str, torch.dtype], given: dict[str, Any]
    ) -> Any:
        """A pipeline whose parts are the given ones (None is no part), and otherwise read, each in its dtype of `dtypes`, or in
        that of `default`."""

    def transformer(self, transformer_class: Any, pretrained: str, dtype: torch.dtype) -> nn.Module:
        """The transformer alone, in `dtype`."""


class Pretrained:
    """The parts as they were published, weights and all: the source of every backbone that runs."""

    def check(self, pretrained: str, parts: list[str]) -> None:
        check_folder(pretrained, parts)

    def config(self, reader: Any, pretrained: str, part: str) -> dict[str, Any]:
        return read_config(reader, pretrained, part)

    def digest(self, pretrained: str, part: str) -> str:
        return weights_digest(pretrained, part)

    def pipeline(
        self, pipeline_class: Any, pretrained: str, dtypes: dict[str, torch.dtype], given: dict[str, Any]
    ) -> Any:
        try:
            with without_loading_bars():
                return pipeline_class.from_pretrained(pretrained, dtype=dtypes, **given)
        except OSError as error:
            raise UserError(f"cannot load the base model {pretrained!r}: {first_line(error)}") from error

    def transformer(self, transformer_class: Any, pretrained: str, dtype: torch.dtype) -> nn.Module:
        try:
            with without_loading_bars():
                return transformer_class.from_pretrained(pretrained, subfolder="transformer", dtype=dtype)
        except OSError as error:
            raise UserError(f"cannot load the transformer of {pretrained!r}: {first_line(error)}") from error


class OtherTransformer(Pretrained):
    """One pipeline's parts, but its transformer from a folder of its own; of other pipelines all parts as they are.

    Args:
        transformer_class: of the pipeline.
        pretrained: the pipeline.
        folder: whose `transformer/` takes the place of the pipeline's.
    """

    def __init__(self, transformer_class: Any, pretrained: str, folder: str) -> None:
        self.transformer_class, self.pretrained, self.folder = transformer_class, pretrained, folder

    def check(self, pretrained: str, parts: list[str]) -> None:
        super().check(pretrained, parts)
        require(Path(self.folder).is_dir(), f"the backbone's transformer_from: {self.folder} is no folder")
        check_folder(self.folder, ["transformer"])

    def config(self, reader: Any, pretrained: str, part: str) -> dict[str, Any]:
        return super().config(reader, self._place(pretrained, part), part)

    def digest(self, pretrained: str, part: str) -> str:
        return super().digest(self._place(pretrained, part), part)

    def pipeline(
        self, pipeline_class: Any, pretrained: str, dtypes: dict[str, torch.dtype], given: dict[str, Any]
    ) -> Any:
        if "transformer" not in given:
            given = given | {"transformer": self.transformer(self.transformer_class, pretrained, dtypes["default"])}
        return super().pipeline(pipeline_class, pretrained, dtypes, given)

    def transformer(self, transformer_class: Any, pretrained: str, dtype: torch.dtype) -> nn.Module:
        return super().transformer(transformer_class, self._place(pretrained, "transformer"), dtype)

    def _place(self, pretrained: str, part: str) -> str:
        return self.folder if (pretrained, part) == (self.pretrained, "transformer") else pretrained
