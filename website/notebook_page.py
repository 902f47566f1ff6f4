"""A notebook as a page: its text, its code, and what the code put out."""

import base64
import json
from pathlib import Path
from typing import Any


def markdown_of(path: Path, pictures: str) -> tuple[str, dict[str, bytes]]:
    """Markdown of a notebook, and the PNG files that it shows.

    Args:
        path: an `.ipynb` file of format 4.
        pictures: what the names of the pictures begin with.
    """
    notebook = json.loads(path.read_text())
    files: dict[str, bytes] = {}
    parts: list[str] = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code" and source.strip():
            parts.append(_fenced(source, "python"))
            for output in cell["outputs"]:
                parts.append(_output(output, pictures, files))
    return "\n\n".join(part for part in parts if part) + "\n", files


def _output(output: dict[str, Any], pictures: str, files: dict[str, bytes]) -> str:
    if output["output_type"] == "stream":
        return _fenced("".join(output["text"]), "text") if output["name"] == "stdout" else ""
    data = output.get("data", {})
    if "image/png" in data:
        name = f"{pictures}-{len(files) + 1}.png"
        files[name] = base64.b64decode(data["image/png"])
        return f"![What the cell above draws]({name})"
    return _fenced("".join(data["text/plain"]), "text") if "text/plain" in data else ""


def _fenced(text: str, language: str) -> str:
    return f"````{language}\n{text.rstrip()}\n````"
