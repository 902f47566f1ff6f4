"""A first use prints nothing on stderr: neither warnings that lrk causes nor bars in a log."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from studies.tiny import prose, write_model

ROOT = Path(__file__).parents[1]
PATCHED = """
import torch, lrk
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("model")
lrk.patch(model)
tokens = torch.arange(8)[None]
model(tokens, labels=tokens).loss.backward()
mask = torch.ones_like(tokens)
model.eval().generate(
    tokens, attention_mask=mask, pad_token_id=0, max_new_tokens=2, do_sample=False
)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("first_use")
    write_model(folder / "model")
    rows = [json.dumps({"text": prose(40, seed)}) + "\n" for seed in range(12)]
    (folder / "my-documents.jsonl").write_text("".join(rows))
    return folder


def errors_of(folder: Path, *command: str) -> str:
    run = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stderr


def test_a_patched_model_says_nothing(folder):
    said = errors_of(folder, "-c", PATCHED)
    # Loading shows a bar of transformers, which is not ours to switch off in others' programs.
    assert [line for line in said.splitlines() if line and "Loading weights" not in line] == []


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            "train",
            "--model_name_or_path model --data my-documents.jsonl --target_length 128 "
            "--train_length 32 --max_steps 2 --gradient_checkpointing --output_dir trained",
        ),
        ("eval", "--model model --tasks perplexity --lengths 48 --stride 16 --documents 2 "
         "--data my-documents.jsonl --output_dir results"),
        ("plan", "--model model --length 48 --optim sgd"),
        ("plan", "--model model --length 48 --optim sgd --lora_rank 2"),
    ],
)  # fmt: skip
def test_a_command_says_nothing(folder, command, words):
    entry = {"eval": "evaluate"}.get(command, command)
    start = f"import sys, lrk_commands; sys.exit(lrk_commands.{entry}())"
    assert errors_of(folder, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {start}",
                     *words.split()) == ""  # fmt: skip
