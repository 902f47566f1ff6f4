"""What only saving would refuse, tried before the first step."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import create_repo
from huggingface_hub.errors import HfHubHTTPError
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import align_special_tokens

from lrk.train.arguments import LrkTrainingArguments
from lrk.train.model_card import model_card
from lrk.transformers_4 import make_readable

# Flags of a generation config that transformers saves only beside `do_sample`.
_OF_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff")


def check_savable(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, arguments: LrkTrainingArguments
) -> None:
    """Save all but the weights to a temporary folder, with what training will have changed.

    A generation config with flags of sampling and without `do_sample`, such as Llama 2 came with,
    is what transformers reads but does not write: it gets `do_sample`.

    Raises:
        ValueError: for what cannot be saved.
    """
    align_special_tokens(model, tokenizer)
    generation = model.generation_config
    if generation is not None and not generation.do_sample:
        neutral = type(generation)()
        given = [n for n in _OF_SAMPLING if getattr(generation, n) != getattr(neutral, n)]
        generation.do_sample = True if given else generation.do_sample
    with TemporaryDirectory() as folder:
        with _named("config", arguments):
            model.config.save_pretrained(folder)
        with _named("tokenizer", arguments):
            tokenizer.save_pretrained(folder)
            make_readable(Path(folder))
        if generation is not None:
            with _named("generation config", arguments):
                generation.save_pretrained(folder)
    model_card(arguments, model.config, [], arguments.model_name_or_path)


def check_hub(arguments: LrkTrainingArguments) -> None:
    """Make the repository that `push_to_hub` pushes to, as transformers does later.

    Raises:
        ValueError: if the hub cannot be reached, or does not allow it.
    """
    if not arguments.push_to_hub or arguments.process_index:
        return
    name = arguments.hub_model_id or Path(arguments.output_dir or "").absolute().name
    try:
        create_repo(
            name, token=arguments.hub_token, private=arguments.hub_private_repo, exist_ok=True
        )
    # Its bases are OSError and what the library below raises, which differs between releases.
    except (*HfHubHTTPError.__bases__, ValueError) as error:  # type: ignore[misc]
        reason = " ".join(str(error).split())
        raise ValueError(
            f"push_to_hub is true, but the repository {name!r} cannot be made: {reason}"
        ) from error


@contextmanager
def _named(part: str, arguments: LrkTrainingArguments) -> Iterator[None]:
    try:
        yield
    # What is wrong with them shows in many ways: a value that JSON has not, a file that is absent.
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"the {part} of model_name_or_path {arguments.model_name_or_path!r} cannot be saved: "
            f"{reason}"
        ) from error
