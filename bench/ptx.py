"""A hash of what Triton made of a kernel, by which a refactoring shows that it changed nothing."""

import hashlib
import re

_COMMENT = re.compile(r"//.*")
_OF_LINES = re.compile(r"\.(loc|file)\b|\$L__tmp\d+:")


def code_hash(ptx: str) -> str:
    """16 hex digits of a hash of the instructions, whatever lines of the source they come from."""
    code = ptx.split(".section", 1)[0]  # tables for debuggers follow
    lines = (_COMMENT.sub("", line).strip() for line in code.splitlines())
    kept = "\n".join(line for line in lines if line and not _OF_LINES.match(line))
    return hashlib.sha256(kept.encode()).hexdigest()[:16]
