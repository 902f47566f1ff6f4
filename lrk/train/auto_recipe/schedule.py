"""Steps, batches and learning rates: from the papers, not from the studies.

LongRecipe's extension stage for models of 7B and 8B (2409.00509, 4.1) takes 96 samples of 38,400
tokens a step, 104 times.
"""

from typing import NamedTuple

from lrk.train.auto_recipe.choices import Choices

TOKENS_A_SAMPLE = 38_400
SAMPLES_A_STEP = 96
TOKENS_A_STEP = SAMPLES_A_STEP * TOKENS_A_SAMPLE
STEPS = 104
REPLAYED_TOKENS = 68_000_000
"""Of the annealing stage (the same section)."""
PASSES = 4
"""Repeated so often, data are nearly as good as new ones (Muennighoff et al., 2305.16264)."""
SMALL = 10**9
"""Parameters below which the preset of SmolLM2-135M is nearer than those of 7B models."""
CHECKPOINTS = 4


class Steps(NamedTuple):
    """Samples of a forward pass, passes of a step, and steps of a run."""

    batch: int
    accumulation: int
    steps: int


def steps_for(length: int, tokens: int | None, of_run: int = STEPS * TOKENS_A_STEP) -> Steps:
    """As many tokens in a forward pass, a step and a run as LongRecipe has, as far as data reach.

    A step takes no more than a pass over the data, a run no more than `PASSES` of them.

    Args:
        length: of a sample, in tokens.
        tokens: of all data; None where they are not known.
        of_run: tokens of the whole run.
    """
    batch = max(TOKENS_A_SAMPLE // length, 1)
    accumulation = max(round(TOKENS_A_STEP / (batch * length)), 1)
    steps = max(round(of_run / (batch * accumulation * length)), 1)
    if tokens is None:
        return Steps(batch, accumulation, steps)
    samples = max(tokens // length, 1)
    batch = min(batch, samples)
    accumulation = min(accumulation, max(samples // batch, 1))
    return Steps(batch, accumulation, min(steps, -(-PASSES * samples // (batch * accumulation))))


def choose_schedule(
    choices: Choices, length: int, tokens: int | None, parameters: int, anneals: bool
) -> None:
    """Choose steps, batch, learning rate and checkpoints.

    Args:
        length, tokens: as for `steps_for`.
        parameters: of the model.
        anneals: whether this is LongRecipe's second stage, on replayed data.
    """
    of_run = REPLAYED_TOKENS if anneals else STEPS * TOKENS_A_STEP
    found = steps_for(length, tokens, of_run)
    a_pass = found.batch * length
    choices.make(
        "per_device_train_batch_size",
        found.batch,
        f"{a_pass:,} tokens a forward pass; LongRecipe has {TOKENS_A_SAMPLE:,} (2409.00509, 4.1)",
    )
    choices.make(
        "gradient_accumulation_steps",
        found.accumulation,
        f"{found.accumulation * a_pass:,} tokens a step; LongRecipe has {TOKENS_A_STEP:,}"
        + ("" if found.accumulation * a_pass > TOKENS_A_STEP // 2 else ", the data hold fewer"),
    )
    if "num_train_epochs" not in choices.given:
        run = found.steps * found.accumulation * a_pass
        more = "" if tokens is None else f", {run / max(tokens, 1):.1f} passes over the data"
        choices.make(
            "max_steps",
            found.steps,
            f"{run:,} tokens in all{more}; LongRecipe has {of_run:,}, and no more than {PASSES} "
            "passes (2305.16264)",
        )
    if anneals:
        source = "LongRecipe's annealing (2409.00509, 4.1), whose decay is linear here"
        rate, schedule = 5e-6, "linear"
    elif parameters < SMALL:
        source = f"the preset of SmolLM2-135M, for {parameters:,} parameters; not measured"
        rate, schedule = 2e-4, "cosine"
    else:
        source = "LongRecipe's extension of 7B and 8B models (2409.00509, 4.1)"
        rate, schedule = 5e-5, "constant"
    choices.make("learning_rate", rate, source)
    choices.make("lr_scheduler_type", schedule, source)
    choices.make("weight_decay", 0.1, source)
    steps = choices.values.get("max_steps", 0)
    often = "a quarter of the run at most is lost; the presets have these"
    if steps > 0:
        choices.make("save_steps", max(-(-steps // CHECKPOINTS), 1), often)
    choices.make("save_minutes", 30.0, often)
    choices.make("save_total_limit", 2, often)
