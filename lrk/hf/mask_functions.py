"""What transformers' mask functions say, to a backend that is told of documents.

transformers composes a function `(batch, head, query, key) -> visible` of a few, and its other
backends evaluate it. The lrk attention never sees it: causality and windows come to it as
arguments, documents as boundaries. So a function that says anything else is refused, not ignored.
"""

from collections.abc import Callable, Iterator

import torch
from transformers import masking_utils

MaskFunction = Callable[..., torch.Tensor | bool]

# By the function of transformers.masking_utils that is, or makes, a mask function.
_SAID_TO_THE_ATTENTION = {
    "causal_mask_function",  # as is_causal
    "bidirectional_mask_function",
    "sliding_window_overlay",  # as sliding_window
    "sliding_window_bidirectional_overlay",  # likewise, where a window without causality is refused
    # Guessed from positions: those that skip are of one document, those that start again are
    # refused by `lrk_attention`.
    "packed_sequence_mask_function",
}
_OR = "or_mask"  # what or_masks makes; nothing that lrk's attention obeys has that name
_COMPOSING = {"and_masks", "remap_positions_for_packed_sequence"}


def check_mask_function(mask_function: MaskFunction) -> None:
    """Raise `ValueError` for a mask that the lrk attention would not obey.

    Compiled, it knows no more than the name of the outermost function: one that is made while a
    graph is traced has no inside yet.
    """
    if mask_function is masking_utils.causal_mask_function or is_bidirectional(mask_function):
        return
    if torch.compiler.is_compiling():
        if mask_function.__name__ == _OR:
            raise _refusal("or_masks")
        return
    for made_by in _parts(mask_function):
        if made_by not in _SAID_TO_THE_ATTENTION:
            raise _refusal(made_by)


def _refusal(made_by: str) -> ValueError:
    images = " (for images, by token_type_ids: leave them out where there is text alone)"
    return ValueError(
        f"the model masks its attention by {made_by}{images if made_by == 'or_masks' else ''}, "
        'which the lrk attention does not have: use another attn_implementation, such as "sdpa"'
    )


def is_bidirectional(mask_function: MaskFunction) -> bool:
    """Whether every query sees every key, as in an encoder or where one attends to it."""
    return mask_function is masking_utils.bidirectional_mask_function


def _parts(mask_function: MaskFunction) -> Iterator[str]:
    module, name = (getattr(mask_function, x, "?") for x in ("__module__", "__qualname__"))
    made_by = name.split(".")[0]  # an inner function is called "and_masks.<locals>.and_mask"
    if module != masking_utils.__name__ or made_by not in _COMPOSING:
        yield made_by if module == masking_utils.__name__ else f"{module}.{name}"
        return
    for cell in mask_function.__closure__ or ():
        inside = cell.cell_contents
        for part in inside if isinstance(inside, tuple) else (inside,):
            if callable(part) and not isinstance(part, torch.Tensor):
                yield from _parts(part)
