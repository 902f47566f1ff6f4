"""What a cell costs beside the others of an evaluation, so that jobs can divide them evenly."""

from lrk.eval.arguments import EvalArguments
from lrk.eval.cells import LM_EVAL, Cell
from lrk.eval.losses import windows


def cost(cell: Cell, count: int, arguments: EvalArguments, hidden_size: int) -> float:
    """Of reading what a cell reads, in units of a model's own.

    A token costs `2 N + 2 L n d` floating-point operations in a context of n tokens, where the
    model has L layers of width d and `N = 12 L d^2` parameters (Kaplan et al., arXiv 2001.08361,
    equations 2.1 and 2.2): `12 d + n`, up to a factor. What answers cost is left out. Of a task of
    lm-eval nothing is known: it costs nothing here, so jobs get as many of these each.

    Args:
        count: trials or texts of the cell.
        hidden_size: d.
    """
    if cell.task == LM_EVAL:
        return 0.0
    assert cell.length is not None

    def read(length: int, window: int, stride: int) -> float:
        contexts = [stop - start for start, _, stop in windows(length, window, stride)]
        return sum(tokens * (12 * hidden_size + tokens) for tokens in contexts)

    whole = read(cell.length, cell.length, 1)
    if cell.task == "perplexity":
        whole = read(arguments.document_length or cell.length, cell.length, arguments.stride)
    elif cell.task == "longppl":
        window = arguments.short_context + arguments.short_stride
        whole += read(cell.length, window, arguments.short_stride)
    return count * float(whole)
