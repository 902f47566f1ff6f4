"""What of YAML is read, and that the rest is refused quickly and in one sentence."""

import time

import pytest

from lrk.train.yaml_text import read_mapping

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
DEEP = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 100))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2\n", "key 'seed' stands there twice .*line 2"),
        ("max-steps: 1\nmax_steps: 2\n", "key 'max_steps' stands there twice .*line 2"),
        ("stages:\n- kind: merge\n  kind: extension\n", "key 'kind' stands there twice .*line 3"),
        (BOMB, "more than 100,000 values, with aliases written out"),
        (DEEP, "more than 16 levels, with aliases written out"),
        ("a: &a [*a]\n", "an alias of what it stands in .*line 1"),
        ("a: " + "[" * 100_000, "more than 16 levels"),
        ("a: " + "{b: " * 1000, "more than 16 levels"),
        ("? [a, b]\n: 1\n", "a key that is no text"),
        ("a: 1\n" * 300_000, "has 1,500,000 bytes; it must have at most 1,048,576"),
        ("a: \x00\n", "is not YAML"),
        ("- a\n", "must be a mapping of keys to values"),
        ("", "must be a mapping of keys to values"),
    ],
    ids=lambda value: value[:30],
)
def test_what_is_refused(text, message, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=message) as caught:
        read_mapping(path)
    assert time.perf_counter() - start < 2
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"a: caf\xe9\n")
    with pytest.raises(ValueError, match=r"config\.yaml' is not UTF-8"):
        read_mapping(path)


def test_scalars_are_text_as_it_is_written(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes("\ufeffa: 1e-5\nb: [yes, ~]\nc: {d: 007}\n".encode())
    assert read_mapping(path) == {"a": "1e-5", "b": ["yes", "~"], "c": {"d": "007"}}


def test_an_alias_is_what_it_stands_for(tmp_path):
    """As programs write it that have one list in two places."""
    path = tmp_path / "config.yaml"
    path.write_text("a: &a [x, y]\nb: *a\n")
    assert read_mapping(path) == {"a": ["x", "y"], "b": ["x", "y"]}
