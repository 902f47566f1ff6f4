"""Lists as code hosts read them, in Python-Markdown's form."""

import pytest

from website.github_markdown import on_page_markdown


@pytest.mark.parametrize(
    ("written", "read"),
    [
        pytest.param("text\n- a\n- b\n", "text\n\n- a\n- b\n", id="a list ends a paragraph"),
        pytest.param("in\n2. May\n", "in\n2. May\n", id="a number other than 1 does not"),
        pytest.param("1. a\n\n   b\n", "1. a\n\n    b\n", id="a second paragraph"),
        pytest.param("- a\n  - b\n    - c\n", "- a\n    - b\n        - c\n", id="nested"),
        pytest.param("- a\nlazy\n\nafter\n", "- a\n    lazy\n\nafter\n", id="a lazy line"),
        pytest.param("- a\n\n  | b |\n  |---|\n", "- a\n\n    | b |\n    |---|\n", id="a table"),
        pytest.param(
            "- a\n\n  ```text\n  - b\n      c\n  ```\n\n- d\n",
            "- a\n\n    ```text\n    - b\n        c\n    ```\n\n- d\n",
            id="code moves with its item",
        ),
        pytest.param("```\n- a\n  - b\n```\n", "```\n- a\n  - b\n```\n", id="code stays as it is"),
    ],
)
def test_lists(written: str, read: str) -> None:
    assert on_page_markdown(written) == read
