"""What is known of each token of each sample: computed once, by one model at a time."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from lrk.analysis.arguments import AnalysisArguments
from lrk.analysis.inputs import Texts, load_model
from lrk.analysis.rows import Rows
from lrk.analysis.scores import token_logits
from lrk.eval.longppl import find_key_tokens
from lrk.pretrained import fingerprint_weights
from lrk.progress import tracked
from lrk.sealed import read_sealed, write_sealed

_WEIGHTS = ".weights"  # fingerprint of the model that fills the rows of a file


class Computed:
    """What is known of each token: rows that are computed where they are missing."""

    def __init__(self, folder: Path, arguments: AnalysisArguments, texts: Texts) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._arguments = arguments
        self._texts = texts

    def lacks(self, name: str, dtype: type) -> bool:
        """Whether a row is missing."""
        return len(Rows(self._folder / name, self._texts.length, dtype)) < len(self._texts)

    def of(self, name: str, dtype: type, row: Callable[[int], NDArray]) -> NDArray:
        """(N, S): row `index` of it is `row(index)`."""
        rows = Rows(self._folder / name, self._texts.length, dtype)
        missing = range(len(rows), len(self._texts))
        for index in tracked(missing, name, len(missing)):
            rows.append(row(index))
        return rows.array()

    def logits(self, argument: str, name: str, gguf_file: str | None) -> NDArray:
        """(N, S) float32, by the model that an argument names."""
        model = self._model(argument, name, gguf_file, np.float32)

        def row(index: int) -> NDArray:
            assert model is not None
            input_ids, position_ids = self._texts.input_ids(index), self._texts.position_ids(index)
            found = token_logits(model, input_ids, position_ids).numpy()
            if not np.isfinite(found[1:]).all():
                raise ValueError(f"{argument} {name!r} has logits that are not finite")
            return found

        return self.of(argument, np.float32, row)

    def key_tokens(self) -> NDArray:
        """(N, S) 1 for key tokens, by the base model."""
        arguments = self._arguments
        model = self._model("keys", arguments.model, arguments.gguf_file, np.int8)

        def row(index: int) -> NDArray:
            assert model is not None
            return find_key_tokens(
                model,
                self._texts.input_ids(index),
                None,
                arguments.short_context,
                arguments.short_stride,
            ).numpy()

        return self.of("keys", np.int8, row)

    def weights(self) -> dict[str, str]:
        """Fingerprints of the models that filled rows, by the name of the rows."""
        files = sorted(self._folder.glob("*" + _WEIGHTS))
        return {file.stem: str(read_sealed(file)["weights"]) for file in files}

    def _model(
        self, rows: str, name: str, gguf_file: str | None, dtype: type
    ) -> PreTrainedModel | None:
        """The model that fills the rows, if any are missing; it must be the one that began them."""
        if not self.lacks(rows, dtype):
            return None
        argument = "model" if rows == "keys" else rows
        model = load_model(self._arguments, argument, name, gguf_file, self._texts.input_ids(0))
        weights, file = fingerprint_weights(model), self._folder / (rows + _WEIGHTS)
        if not file.is_file():
            write_sealed(file, {"weights": weights})
        elif read_sealed(file)["weights"] != weights:
            raise ValueError(
                f"{argument} {name!r} has other weights than when the analysis began: choose "
                "another output_dir or overwrite_output_dir"
            )
        return model
