"""What `lrk-eval --dry_run` prints."""

from collections.abc import Iterator

from lrk.eval.evaluation import Evaluation
from lrk.eval.pretrained import is_patched
from lrk.eval.tasks import TASKS

# Characters shown of each end of a long prompt.
_SHOWN = 400


def dry_run(evaluation: Evaluation) -> str:
    """The resolved arguments, the cells with their counts, and one example."""
    return "\n".join(
        [evaluation.arguments.to_yaml(), *_plan(evaluation), "", *_example(evaluation)]
    )


def _plan(evaluation: Evaluation) -> Iterator[str]:
    missing = evaluation.missing()
    operations = "lrk's" if is_patched(evaluation.arguments, evaluation.config) else "stock"
    yield f"Model type {evaluation.config.model_type}, {operations} operations"
    unfinished = evaluation.unfinished(evaluation.cells)
    yield f"{len(evaluation.cells)} cells, {len(evaluation.cells) - len(unfinished)} finished"
    if (share := evaluation.arguments.share).count > 1:
        yield f"{len(evaluation.own_cells)} of them in share {share}"
    tokens = 0
    for cell in missing:
        count = evaluation.count(cell)
        if cell.task in TASKS:
            tokens += count * (cell.length or 0)
        yield f"  {cell!s:<40} {count:>6,}"
    yield f"At most {tokens:,} tokens in prompts and answers"


def _example(evaluation: Evaluation) -> Iterator[str]:
    cell = next((cell for cell in evaluation.cells if cell.task in TASKS), None)
    if cell is None:
        return
    prompt, ids = evaluation.trials(cell)(0, evaluation.size(cell))
    text = prompt.text
    if len(text) > 2 * _SHOWN:
        left_out = len(text) - 2 * _SHOWN
        text = f"{text[:_SHOWN]}\n[... {left_out:,} characters ...]\n{text[-_SHOWN:]}"
    yield f"Trial 0 of {cell}, {len(ids):,} tokens:"
    yield text
    yield f"The answer begins {prompt.answer_prefix!r} and must hold {', '.join(prompt.references)}"
