"""The folder of an analysis: its files, and whether it holds this analysis or another one."""

import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from lrk.analysis.arguments import AnalysisArguments
from lrk.analysis.extended import FOLDER as EXTENDED
from lrk.analysis.inputs import Texts
from lrk.atomic import remove, remove_temporaries, write_text
from lrk.recipe.fingerprint import tokenizer_fingerprint

TABLE = "impactful.json"
TYPES = "token_types.csv"
SUMMARY = "analysis.json"
PARTS_FIGURE = "parts_of_speech.png"
TYPES_FIGURE = "token_types.png"
ROWS = "rows"
_SETTINGS = "settings.json"
_FILES = (_SETTINGS, TABLE, TYPES, SUMMARY, PARTS_FIGURE, TYPES_FIGURE, ROWS, EXTENDED)

# These are applied to what is computed, so other ones compute nothing again.
_THRESHOLDS = frozenset({"top_share", "min_lift", "min_count", "parts_of_speech"})


def open_folder(
    arguments: AnalysisArguments, length: int, texts: Texts, tokenizer: PreTrainedTokenizerBase
) -> Path:
    """Make the folder of the analysis, or check that the one that is there is of this analysis."""
    folder = Path(arguments.output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir {arguments.output_dir!r} is a file")
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporaries(folder)
    if arguments.overwrite_output_dir:
        for name in _FILES:
            remove(folder / name)
    settings = {
        name: value for name, value in arguments.to_dict().items() if name not in _THRESHOLDS
    } | {
        "length": length,
        "samples": len(texts),
        "tokens": texts.fingerprint(),
        "tokenizer": tokenizer_fingerprint(tokenizer),
    }
    file = folder / _SETTINGS
    if not file.is_file():
        write_text(file, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
        return folder
    old = json.loads(file.read_text(encoding="utf-8"))
    different = [
        f"{name} was {old.get(name)!r} and is {value!r}"
        for name, value in settings.items()
        if old.get(name) != value
    ]
    if different:
        raise ValueError(
            f"output_dir {arguments.output_dir!r} holds an analysis with other settings "
            f"({'; '.join(different)}): choose another folder or overwrite_output_dir"
        )
    return folder
