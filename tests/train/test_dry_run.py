"""What `--dry_run` says of steps, positions and memory; test_command.py has the rest of it."""

from lrk.train.dry_run import dry_run


def test_a_prompt_counts_as_tokens_of_a_step(arguments):
    said = dry_run(
        arguments(
            position_method="endprompt",
            end_prompt="Nobody crossed it.",
            contiguous_share=0.0,
            gradient_accumulation_steps=3,
        )
    )
    assert "of 32 tokens" in said
    assert "a step           3 samples, 96 tokens" in said
    assert "steps            2, 192 tokens in all" in said
    assert "last position    255 on average" in said


def test_the_passes_of_longce_are_not_predicted(arguments):
    options = {"longce_short_context": 64, "longce_short_stride": 16}
    said = dry_run(arguments(token_loss="longce", **options))
    assert "not predicted for token_loss longce" in said
    assert "not predicted" not in dry_run(arguments())
