"""A notebook as a page."""

import base64
import json
from pathlib import Path

from website.notebook_page import markdown_of


def test_text_code_and_outputs(tmp_path: Path) -> None:
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": ["3\n"]},
        {"output_type": "stream", "name": "stderr", "text": ["a warning\n"]},
        {
            "output_type": "display_data",
            "data": {"image/png": base64.b64encode(b"PNG").decode(), "text/plain": ["<Figure>"]},
        },
        {"output_type": "execute_result", "data": {"text/plain": ["4"]}},
    ]
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "\n", "text"]},
        {"cell_type": "code", "source": ["print(1 + 2)"], "outputs": outputs},
        {"cell_type": "code", "source": [], "outputs": []},
    ]
    path = tmp_path / "page.ipynb"
    path.write_text(json.dumps({"nbformat": 4, "cells": cells}))
    text, files = markdown_of(path, "page")
    assert text == (
        "# Title\n\ntext\n\n"
        "````python\nprint(1 + 2)\n````\n\n"
        "````text\n3\n````\n\n"
        "![What the cell above draws](page-1.png)\n\n"
        "````text\n4\n````\n"
    )
    assert files == {"page-1.png": b"PNG"}
