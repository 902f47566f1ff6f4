"""The file of RoPE factors: read, or refused in one sentence."""

import json
from pathlib import Path

import pytest

from lrk.rope_factors import RopeFactors, read_rope_factors


def write(folder: Path, content: object) -> Path:
    file = folder / "factors.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_factors_are_read(tmp_path):
    file = write(
        tmp_path,
        {
            "long_factor": [1, 2.5],
            "attention_factor": 1.1,
            "target_length": 64,
            "original_max_position_embeddings": 8,
            "seed": 3,
        },
    )
    assert read_rope_factors(file) == RopeFactors((1.0, 2.5), 1.1, 64, 8)
    assert read_rope_factors(write(tmp_path, {"long_factor": [1]})) == RopeFactors((1.0,))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ([1.0], "must hold a JSON object with a list long_factor"),
        ({"long_factor": 2.0}, "must hold a JSON object with a list long_factor"),
        ({"long_factor": [1.0, 0.5]}, "has 0.5 as long_factor 1; each must be a finite number"),
        ('{"long_factor": [1.0, NaN]}', "has nan as long_factor 1"),
        ('{"long_factor": [Infinity]}', "has inf as long_factor 0"),
        ({"long_factor": [10**400]}, "as long_factor 0; each must be a finite number"),
        ({"long_factor": [1.0], "attention_factor": 10**400}, "it must be a finite number above"),
        ({"long_factor": ["2"]}, "has '2' as long_factor 0"),
        ({"long_factor": [True]}, "has True as long_factor 0"),
        ({"long_factor": [1.0], "attention_factor": 0}, "attention_factor 0; it must be a finite"),
        ({"long_factor": [1.0], "target_length": 2.5}, "a window of 2.5; it must be an integer"),
    ],
)
def test_bad_factors_are_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_rope_factors(write(tmp_path, content))


def test_missing_factors_are_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_rope_factors(tmp_path / "none.json")
