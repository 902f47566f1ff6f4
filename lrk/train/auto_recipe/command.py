"""`lrk-train --recipe auto`: choose, print why, and write the file that would be run."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from lrk.atomic import write_text
from lrk.output_folder import check_output_dir
from lrk.train.arguments import LrkTrainingArguments
from lrk.train.auto_recipe.evidence import read_evidence
from lrk.train.auto_recipe.recipe import Subject, make_recipe
from lrk.train.auto_recipe.survey import survey
from lrk.train.card import card_of
from lrk.train.nearest import require_one_of
from lrk.train.parser import STAGES, read_configuration, underscored, values
from lrk.train.pretrained import load_config, load_tokenizer

RECIPES = ("auto",)
RECIPE_FILE = "recipe.yaml"
_OF_CONFIG = (
    *("model_name_or_path", "gguf_file", "target_length", "output_dir"),
    *("train_length", "position_reach"),
    *("rope_scaling", "rope_theta", "rope_factors", "rope_critical_dimension"),
)


def asks_for_recipe(words: Sequence[str]) -> bool:
    """Whether a command line is for this, and not for a run."""
    return any(word.partition("=")[0] == "--recipe" for word in words)


def write_recipe(words: Sequence[str]) -> str:
    """What `lrk-train --recipe auto [--gpu NAME] [--recipe_file FILE] [--KEY VALUE ...]` prints.

    The file is written to `OUTPUT_DIR/recipe.yaml` unless `--recipe_file` names another; with
    `--dry_run` it is not.

    Raises:
        ValueError: in one sentence, for an argument that is missing or wrong, a file that is there
            already, and a model that has the window or fits no rung of the ladder.
    """
    own, rest = _parser().parse_known_args([underscored(word) for word in words])
    require_one_of("recipe", own.recipe, RECIPES)
    content, path, options = read_configuration(rest)
    if STAGES in content:
        raise ValueError(f"{path} has {STAGES}; --recipe auto makes the file of one run")
    given = values([(content, path)], options)
    for name, example in (
        ("model_name_or_path", "a folder or hub model"),
        ("data", "what to train on"),
        ("target_length", "the window to reach, in tokens"),
        ("output_dir", "the folder of the run"),
    ):
        if not given.get(name):
            raise ValueError(f"{name} is missing; with --recipe auto it must name {example}")
    card = card_of(own.gpu)
    file = Path(own.recipe_file or Path(given["output_dir"]) / RECIPE_FILE)
    if file.suffix not in (".yaml", ".yml"):
        raise ValueError(f"recipe_file is {str(file)!r}; it must end in .yaml or .yml")
    if file.exists():
        raise ValueError(f"recipe_file {str(file)!r} is there already; delete it, or name another")
    check_output_dir(file.parent, "the folder of recipe_file")
    evidence = read_evidence()
    arguments = LrkTrainingArguments(**{k: v for k, v in given.items() if k in _OF_CONFIG})
    if arguments.world_size > 1:
        raise ValueError(f"--recipe auto is started by {arguments.world_size} processes; start one")
    config = load_config(arguments)
    data = survey(
        given["data"],
        load_tokenizer(arguments, config),
        given.get("text_column", "text"),
        given.get("assistant_only", True),
        given.get("split_special_tokens", True),
    )
    name, target = given["model_name_or_path"], given["target_length"]
    recipe = make_recipe(Subject(name, config, target, card, data), evidence, given)
    command = f"lrk-train {shlex.quote(str(file))}"
    if given.get("dry_run"):
        return f"{recipe}\n\nNothing is written with --dry_run"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, recipe.to_yaml(command))
    return f"{recipe}\n\nWritten to {file}, which this runs; --dry_run checks it first\n  {command}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="lrk-train --recipe auto", add_help=False, allow_abbrev=False)
    for name in ("--recipe", "--gpu", "--recipe_file"):
        parser.add_argument(name)
    return parser
