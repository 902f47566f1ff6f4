"""What a run says before its first step, and when it is saved; the card says how to load it."""

import re
import shlex

from transformers import AutoModelForCausalLM, LlamaForCausalLM

from lrk.eval.parser import parse as parse_evaluation
from lrk.train import train


def test_before_and_after(arguments, corpus, model_folder, capsys):
    made = arguments(eval_data=[str(corpus / "held_out")], eval_samples=2)
    trainer = train(made)
    lines = capsys.readouterr().out.splitlines()
    start = lines.index(f"Training {model_folder}")
    told = dict(line.strip().split("  ", 1) for line in lines[start + 1 : start + 6])
    told = {name: text.strip() for name, text in told.items()}
    assert told == {
        "window": "64 -> 256 tokens",
        "steps": "2 of 1 x 32 tokens, 64 in all",
        "passes": f"{2 / len(trainer.train_dataset):.2g} over the samples",
        "first": "the untouched model is evaluated",
        "folder": str(made.output_dir),
    }

    end = next(n for n, line in enumerate(lines) if line.startswith("Saved to "))
    assert lines[end] == f"Saved to {made.output_dir}: the model, README.md, metrics.jsonl"
    losses = [row["eval_256_loss"] for row in trainer.state.log_history if "eval_256_loss" in row]
    assert f"{losses[0]:.4f} -> {losses[1]:.4f} at 256" in lines[end + 1]
    for line, model in zip(lines[end + 2 : end + 4], (model_folder, made.output_dir), strict=True):
        words = shlex.split(line.partition("lrk-eval ")[2])
        evaluation = parse_evaluation(words)
        assert (evaluation.model, evaluation.lengths) == (str(model), [64, 256])
    code = lines[end + 4].strip().removeprefix("load").strip()
    loaded = eval(code, {"AutoModelForCausalLM": AutoModelForCausalLM})
    assert type(loaded) is LlamaForCausalLM


def test_the_card_says_how_to_load(arguments, corpus, tmp_path):
    train(arguments(eval_data=[str(corpus / "held_out")], eval_samples=2, eval_lengths=[256]))
    card = (tmp_path / "run" / "README.md").read_text()
    assert "| window before | 64 |" in card
    row = r"held-out, simulated length 256 \| \d\.\d+ \(step 0\) \| \d\.\d+ \(step 2\)"
    assert re.search(row, card)
    assert "Step 0 is the model before training, with the RoPE that it came with." in card
    loaded: dict = {}
    exec(re.search(r"```python\n(.*?)```", card, re.S)[1], loaded)
    assert type(loaded["model"]) is LlamaForCausalLM
    assert loaded["model"].config.max_position_embeddings == 256
    assert len(loaded["tokenizer"]) == 320


def test_a_run_without_evaluation_says_no_more_than_it_knows(arguments, capsys):
    train(arguments(target_length=64))
    said = capsys.readouterr().out
    assert "  window           64 tokens, as before\n" in said
    assert "untouched" not in said
    assert "held-out" not in said
