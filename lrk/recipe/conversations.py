"""Conversations: rows of turns become one text, of which only some characters are trained on.

Which tokens the assistant says is found by rendering the conversation up to each of its turns: what
the tokenizer's chat template adds for a turn of the assistant, beyond the prompt for one, is that
turn. So it works with every template that renders a beginning as a beginning, and needs no
`{% generation %}` in it.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from transformers import PreTrainedTokenizerBase

from lrk.recipe.memory_bound import at_most

# Bytes that a chat template may take: it comes with a model, and could fill the machine.
TEMPLATE_MEMORY = 2**32

Spans = list[tuple[int, int]]
Messages = Sequence[Mapping[str, str]]


class Rendered(NamedTuple):
    """A text, the spans `[start, end)` of it to train on, and whether a template made it."""

    text: str
    spans: Spans
    templated: bool


def render(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, assistant_only: bool
) -> Rendered:
    """One row of `messages`, or of `prompt` and `completion` (texts, or lists of messages).

    Raises:
        ValueError: for a row of another form, a tokenizer without a chat template, or a template
            that renders the beginning of this conversation as something else.
    """
    if "messages" in row:
        return _rendered_messages(row["messages"], 0, tokenizer, assistant_only)
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        text = prompt + completion
        return Rendered(text, [(len(prompt) if assistant_only else 0, len(text))], False)
    if isinstance(prompt, str) or isinstance(completion, str) or not (prompt and completion):
        raise ValueError("prompt and completion must both be text, or both lists of messages")
    return _rendered_messages([*prompt, *completion], len(prompt), tokenizer, assistant_only)


def trained_tokens(offsets: ArrayLike, spans: Spans) -> NDArray[np.bool_]:
    """(S,) bool: which tokens lie in a span, by the `[start, end)` characters (S, 2) of each."""
    starts, ends = np.asarray(offsets, dtype=np.int64).reshape(-1, 2).T
    inside = np.zeros(len(starts), bool)
    for start, end in spans:
        inside |= (starts < end) & (ends > start)
    return inside


def _rendered_messages(
    messages: Messages, first: int, tokenizer: PreTrainedTokenizerBase, assistant_only: bool
) -> Rendered:
    """Turns of the assistant from message `first` on are trained on, or all if not only they."""
    if (
        not messages
        or not isinstance(messages, list)
        or any(not isinstance(m, Mapping) or not m.get("role") for m in messages)
    ):
        raise ValueError("messages must be a list of at least one {role, content}")
    text = _template(messages, tokenizer, False)
    if not assistant_only:
        return Rendered(text, [(0, len(text))], True)
    spans: Spans = []
    for index in range(first, len(messages)):
        if messages[index]["role"] != "assistant":
            continue
        before = _template(messages[:index], tokenizer, True) if index else ""
        until = _template(messages[: index + 1], tokenizer, False)
        if not (text.startswith(before) and text.startswith(until)):
            raise ValueError(
                "the tokenizer's chat template renders the beginning of a conversation otherwise "
                f"than on its own, so turn {index} cannot be told apart; set assistant_only false"
            )
        spans.append((len(before), len(until)))
    return Rendered(text, spans, True)


def _template(messages: Messages, tokenizer: PreTrainedTokenizerBase, prompts: bool) -> str:
    if tokenizer.chat_template is None:
        raise ValueError(
            "the data hold messages, but the tokenizer has no chat template: take the model's "
            "instruct version, or render the messages to text beforehand"
        )
    try:
        with at_most(TEMPLATE_MEMORY):
            return str(
                tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    tokenize=False,
                    add_generation_prompt=prompts,
                )
            )
    # A template is a program of the model's author and may raise whatever it likes.
    except Exception as error:
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...")
        raise ValueError(f"the tokenizer's chat template cannot render it ({reason})") from error
