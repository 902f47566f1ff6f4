"""How much a run evaluates, what it takes for its best model, and what it never writes."""

from lrk.train import train
from lrk.train.dry_run import dry_run
from lrk.train.session import set_up


def test_the_best_model_by_default_is_that_of_the_loss_at_the_target(arguments, corpus, tmp_path):
    """A learning rate that destroys the model in the second step: the first one is saved."""
    made = arguments(
        eval_data=[str(corpus / "held_out")],
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        max_steps=3,
        learning_rate=1.0,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=500,
        load_best_model_at_end=True,
        hub_token="hf_secret",
        eval_on_start=False,
    )
    trainer = train(made)
    losses = {
        row["step"]: row["eval_256_loss"]
        for row in trainer.state.log_history
        if "eval_256_loss" in row
    }
    assert trainer.state.best_metric == min(losses.values())
    assert trainer.state.best_global_step == min(losses, key=losses.__getitem__)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any(path.name == "training_args.bin" for path in files)
    assert not [path for path in files if b"hf_secret" in path.read_bytes()]


def test_so_many_samples_are_evaluated_at_each_length(arguments, corpus):
    changes = {"eval_data": [str(corpus / "held_out")], "train_length": 16}
    everything = set_up(arguments(**changes, eval_samples=0)).eval_dataset
    few = set_up(arguments(**changes, eval_samples=3)).eval_dataset
    assert list(few) == list(everything) == ["16", "256"]
    for length, samples in few.items():
        count = len(everything[length])
        assert count > 3
        assert [sample["index"] for sample in samples] == [0, (count - 1) // 2, count - 1]
    told = dry_run(arguments(**changes, eval_samples=3))
    assert f"evaluation       3 of {count} samples, at 16, 256" in told
