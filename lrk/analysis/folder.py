"""The folder of an analysis: its files, and whether it holds this analysis or another one."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from lrk.analysis.arguments import AnalysisArguments
from lrk.analysis.extended import FOLDER as EXTENDED
from lrk.analysis.inputs import Texts
from lrk.atomic import remove, remove_temporaries
from lrk.recipe.fingerprint import tokenizer_fingerprint
from lrk.sealed import read_sealed, write_sealed

TABLE = "impactful.json"
TYPES = "token_types.csv"
SUMMARY = "analysis.json"
PARTS_FIGURE = "parts_of_speech.png"
TYPES_FIGURE = "token_types.png"
ROWS = "rows"
_SETTINGS = "settings.json"
# The settings stand last: what is left of an analysis whose deletion is interrupted has its name.
_FILES = (TABLE, SUMMARY, TYPES, PARTS_FIGURE, TYPES_FIGURE, ROWS, EXTENDED, _SETTINGS)

# These are applied to what is computed, so other ones compute nothing again.
_THRESHOLDS = frozenset({"top_share", "min_lift", "min_count", "parts_of_speech"})


def open_folder(
    arguments: AnalysisArguments, texts: Texts, tokenizer: PreTrainedTokenizerBase
) -> Path:
    """Begin the analysis in its folder, or check that the one that is there is this analysis.

    Raises:
        ValueError: if it is another one, or nobody can say which.
    """
    folder = Path(arguments.output_dir)
    remove_temporaries(folder)
    if arguments.overwrite_output_dir:
        for name in _FILES:
            remove(folder / name)
    settings = {
        name: value for name, value in arguments.to_dict().items() if name not in _THRESHOLDS
    } | {
        "length": texts.length,
        "samples": len(texts),
        "tokens": texts.fingerprint(),
        "tokenizer": tokenizer_fingerprint(tokenizer),
    }
    file = folder / _SETTINGS
    help = "choose another folder or overwrite_output_dir"
    if not file.is_file():
        left = [name for name in _FILES if (folder / name).exists()]
        if left:
            raise ValueError(
                f"output_dir {arguments.output_dir!r} holds {left[0]} without {_SETTINGS}, which "
                f"says of what it is: {help}"
            )
        write_sealed(file, settings)
        return folder
    old = read_sealed(file, help)
    different = [
        f"{name} was {old.get(name)!r} and is {value!r}"
        for name, value in settings.items()
        if old.get(name) != value
    ]
    if different:
        raise ValueError(
            f"output_dir {arguments.output_dir!r} holds an analysis with other settings "
            f"({'; '.join(different)}): {help}"
        )
    return folder
