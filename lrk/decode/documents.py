"""The documents of a forward pass: which queries and keys of the batch are of one text."""

from itertools import pairwise
from typing import NamedTuple

from torch import Tensor


class Document(NamedTuple):
    """A row of the batch, or all of them, and a slice of its queries and of its keys."""

    rows: slice
    queries: slice
    keys: slice


def documents(
    shape: tuple[int, int],
    k_length: int,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
) -> list[Document]:
    """The documents that have queries and keys; the rest is padding.

    Args:
        shape: (B, Sq) of the queries.
        k_length: keys of a row.
        cu_seq_lens_q: (N + 1,) boundaries over the flattened queries; None if a row is a document.
        cu_seq_lens_k: likewise over the keys; default `cu_seq_lens_q`.
    """
    batch, q_length = shape
    if cu_seq_lens_q is None:
        return [Document(slice(0, batch), slice(0, q_length), slice(0, k_length))]
    q_ends = cu_seq_lens_q.tolist()
    k_ends = q_ends if cu_seq_lens_k is None else cu_seq_lens_k.tolist()
    found = []
    for (q_start, q_end), (k_start, k_end) in zip(pairwise(q_ends), pairwise(k_ends), strict=True):
        if q_start < q_end and k_start < k_end:
            row = q_start // q_length
            q_first, k_first = row * q_length, row * k_length
            found.append(
                Document(
                    slice(row, row + 1),
                    slice(q_start - q_first, q_end - q_first),
                    slice(k_start - k_first, k_end - k_first),
                )
            )
    return found


def check_contiguous(position_ids: Tensor, found: list[Document]) -> None:
    """Raise `ValueError` if positions skip inside a document.

    A position map counts the tokens of a document; it knows no other positions.
    """
    for rows, queries, _ in found:
        if queries.stop - queries.start == 1:  # nothing to look at, and no reason to wait for a GPU
            continue
        row = slice(0, 1) if position_ids.shape[0] == 1 else rows
        if (position_ids[row, queries].diff(dim=1) != 1).any():
            raise ValueError(
                "position_ids skip; the methods of lrk.decode have positions of their own: leave "
                "position_ids out"
            )
