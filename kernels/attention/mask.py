"""Which keys a query sees: the arguments that say so, bundled."""

from typing import NamedTuple

from torch import Tensor


class Mask(NamedTuple):
    """The visibility rules of one call, all of them together; `op.py` validates and fills it.

    A query and a key are compared by their key index `p` and `j` inside one document. Without
    documents a batch row is one document. The rules:

    - `j < length` of the document's keys,
    - `causal`: `j <= p`,
    - `window`: `p - j < window`, or with `window_position_ids`
      `position[p] - position[j] < window`.
    """

    cu_seqlens: Tensor | None
    """(N+1,) ends of the queries' documents over the B*Sq tokens, row by row; starts with 0."""
    cu_seqlens_k: Tensor | None
    """(N+1,) likewise over the B*Sk tokens of the keys; set if and only if `cu_seqlens` is."""
    kv_lengths: Tensor | None
    """(B,) number of valid keys of each row, without documents only."""
    q_offsets: Tensor | None
    """(B,) key index of each row's first query; overrides `q_offset`."""
    window_position_ids: Tensor | None
    """(B|1, Sk) positions by which the window counts, strictly increasing in a document."""
    causal: bool
    q_offset: int
    """Key index of the first query, without documents only: a document aligns its last query with
    its last key."""
    window: int | None

    def by_rows(self, q: Tensor, k: Tensor) -> "Mask":
        """The same mask without boundaries where these say that each row is a document."""
        if self.cu_seqlens is None or not a_document_a_row(self.cu_seqlens, q.shape[0]):
            return self
        return self._replace(cu_seqlens=None, cu_seqlens_k=None, q_offset=k.shape[2] - q.shape[2])


def a_document_a_row(cu_seqlens: Tensor | None, batch: int) -> bool:
    """Whether each of `batch` rows is one document.

    No document lies across two rows, and together they hold all tokens: as many as rows are the
    rows. To count them needs no synchronisation with the device.
    """
    return cu_seqlens is None or cu_seqlens.shape[0] == batch + 1
