"""Which attention runs, by name: lrk's own, or another's on lrk's documents.

Nothing is fallen back to: another's runs where it is named, and what it cannot do is refused.
"""

from typing import Any

from lrk.hf import attention, flash_attention, sdpa

LRK = "lrk"

BACKENDS = {
    LRK: attention.BACKEND,
    sdpa.IMPLEMENTATION: sdpa.BACKEND,
    **flash_attention.BACKENDS,
}
"""transformers' backend, of ours, by the name that `lrk.patch` knows the attention by."""

OURS = frozenset(BACKENDS.values())
"""Backends that take positions for nothing but RoPE, and documents from boundaries alone."""


def installed_attention(choice: Any) -> str | None:
    """The attention that `lrk.patch(model, attention=choice)` means; None for transformers' own.

    Args:
        choice: True, False or one of `BACKENDS`.

    Raises:
        ValueError: for anything else, and for an attention that is not installed.
    """
    if isinstance(choice, bool):
        return LRK if choice else None
    if not isinstance(choice, str) or choice not in BACKENDS:
        raise ValueError(
            f"attention is {choice!r}; it must be True, False or one of {', '.join(BACKENDS)}"
        )
    if choice in flash_attention.BACKENDS:
        flash_attention.check_installed(choice)
    return choice


def check_request(requested: Any, choice: bool | str, unasked: tuple[Any, ...] = (None,)) -> None:
    """Raise `ValueError` if an attention would replace another one that was asked for.

    Args:
        requested: `attn_implementation` of transformers.
        choice: as in `installed_attention`.
        unasked: what stands in a config where nobody asked.
    """
    name = installed_attention(choice)
    if name is None or requested in (*unasked, name, *OURS):
        return
    raise ValueError(
        f"attn_implementation is {requested!r}, which attention={choice!r} would replace: leave it "
        "out, or use attention=False"
    )


def own_attention(kind: Any) -> str:
    """The attention that transformers chooses for a class of models where nobody asks."""
    return sdpa.IMPLEMENTATION if kind._supports_sdpa else "eager"


def name_of(backend: str) -> str:
    """What `lrk.patch` calls a backend of `OURS`."""
    return next(name for name, ours in BACKENDS.items() if ours == backend)
