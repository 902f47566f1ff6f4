"""The folder of an analysis: its files, and whether it holds this analysis or another one."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from lrk.analysis.arguments import AnalysisArguments
from lrk.analysis.extended import FOLDER as EXTENDED
from lrk.analysis.inputs import Texts
from lrk.recipe.fingerprint import tokenizer_fingerprint
from lrk.settings_folder import SettingsFolder

TABLE = "impactful.json"
TYPES = "token_types.csv"
SUMMARY = "analysis.json"
PARTS_FIGURE = "parts_of_speech.png"
TYPES_FIGURE = "token_types.png"
ROWS = "rows"
_NAMES = (TABLE, SUMMARY, TYPES, PARTS_FIGURE, TYPES_FIGURE, ROWS, EXTENDED)

# These are applied to what is computed, so other ones compute nothing again.
_THRESHOLDS = frozenset({"top_share", "min_lift", "min_count", "parts_of_speech"})


def open_folder(
    arguments: AnalysisArguments, texts: Texts, tokenizer: PreTrainedTokenizerBase
) -> Path:
    """Begin the analysis in its folder, or check that the one that is there is this analysis.

    Raises:
        ValueError: if it is another one, or nobody can say which.
    """
    folder = SettingsFolder(Path(arguments.output_dir), _NAMES, "an analysis")
    folder.clear(arguments.overwrite_output_dir)
    settings = {
        name: value for name, value in arguments.to_dict().items() if name not in _THRESHOLDS
    } | {
        "length": texts.length,
        "samples": len(texts),
        "tokens": texts.fingerprint(),
        "tokenizer": tokenizer_fingerprint(tokenizer),
    }
    folder.begin(settings)
    return folder.path
