"""What every argument has: a help text."""


def help_text(text: str) -> dict[str, str]:
    """The metadata of a field that transformers' parser reads."""
    return {"help": text}
