"""A question to a model, and the tokens that the model is given for it."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prompt:
    """One trial of a task.

    Attributes:
        text: instruction, haystack and question.
        answer_prefix: how the answer begins; the model is given it and goes on.
        references: what the answer must hold.
        depth: share of the haystack that stands before the needle, 0 to 1; None where there is no
            single needle.
    """

    text: str
    answer_prefix: str
    references: tuple[str, ...]
    depth: float | None = None


@dataclass(frozen=True)
class Encoder:
    """Prompts to token ids.

    Attributes:
        tokenizer: of the model.
        chat_template: wrap the text in the tokenizer's chat template; the answer prefix then
            begins the assistant's turn.
    """

    tokenizer: PreTrainedTokenizerBase
    chat_template: bool = False

    def __post_init__(self) -> None:
        if self.chat_template and not self.tokenizer.chat_template:
            raise ValueError("chat_template is true, but the tokenizer has no chat template")

    def __call__(self, prompt: Prompt) -> list[int]:
        """All the ids that the model is given, special tokens included."""
        if not self.chat_template:
            return self.tokenizer(prompt.text + prompt.answer_prefix).input_ids
        turns = [{"role": "user", "content": prompt.text}]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        # The template has written its special tokens already.
        return self.tokenizer(f"{text}{prompt.answer_prefix}", add_special_tokens=False).input_ids
