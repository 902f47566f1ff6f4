"""What the study makes of outcomes. (The tests of transformers themselves take half an hour.)"""

import unittest

import pytest

from studies.transformers_tests import (
    SHARED,
    WAYS,
    Outcome,
    Record,
    check_source,
    report,
    verdicts,
)

STOCK, PATCHED, WITHOUT = WAYS
PASSED, SKIPPED = Outcome("passed"), Outcome("skipped")


def failed(*messages):
    return Outcome("failed", messages)


def outcomes(**patched):
    """Of tests that pass as they are, and with the patch but for its attention."""
    stock = dict.fromkeys(patched, PASSED)
    return {"llama": {STOCK: stock, PATCHED: patched, WITHOUT: stock}}


def test_what_must_differ_is_told_from_a_fault():
    told = "IndexError: dimension 2; at: assert_close(original_cos_short, original_cos_long)"
    name = "test_model_rope_scaling_frequencies"
    (by_design,) = verdicts(outcomes(**{name: failed(told)}))
    assert "tables of cosines" in by_design.reason
    for fault in (failed("another"), failed(told, "another"), SKIPPED):
        (found,) = verdicts(outcomes(**{name: fault}))
        assert found.reason is None


def test_a_test_that_does_not_pass_as_it_is_says_nothing():
    results = outcomes(test_a=failed("no"), test_b=PASSED)
    results["llama"][STOCK] = {"test_a": SKIPPED, "test_b": PASSED}
    assert not verdicts(results)


def test_report():
    page = report(outcomes(test_a=failed("wrong\nnumbers"), test_b=PASSED, test_c=PASSED))
    assert "| `llama` | 3 | 2 | 0 | 1 | 3 | 0 | 0 |" in page
    assert "- `llama`, patched: `test_a`: wrong numbers" in page


def test_record():
    def parts(case, *ends):
        for index, end in enumerate(ends):
            with case.subTest(str(index)):
                if end == "skips":
                    case.skipTest("no reason")
                assert end == "passes"

    content = {
        "test_passes": lambda case: None,
        "test_skips": lambda case: case.skipTest("no reason"),
        "test_fails": lambda case: case.fail("told"),
        "test_part_fails": lambda case: parts(case, "passes", "fails", "skips"),
        "test_parts_skip": lambda case: parts(case, "passes", "skips"),
    }
    record = Record()
    case = type(SHARED, (unittest.TestCase,), content)
    unittest.TestLoader().loadTestsFromTestCase(case).run(record)
    statuses = {name: outcome.status for name, outcome in record.outcomes.items()}
    assert statuses == {
        "test_passes": "passed",
        "test_skips": "skipped",
        "test_fails": "failed",
        "test_part_fails": "failed",
        "test_parts_skip": "passed",
    }
    assert "told" in record.outcomes["test_fails"].messages[0]
    (message,) = record.outcomes["test_part_fails"].messages
    assert 'assert end == "passes"' in message


def test_another_release_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no source distribution of transformers"):
        check_source(tmp_path)
    for file, text in (
        ("src/transformers/__init__.py", '__version__ = "4.0.0"'),
        ("tests/test_modeling_common.py", ""),
    ):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=r"is of transformers 4.0.0: must be of the installed"):
        check_source(tmp_path)
