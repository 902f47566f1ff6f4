"""Blocks that do not do what they show are found."""

import pytest

from tests.docs.markdown import Block

BASH = [
    ("lrk-trian config.yaml", "lrk-trian: command not found"),
    ("lrk-train config.yaml --max_stepz 3", "did you mean '--max_steps'"),
    ("lrk-train no-such-preset", "is neither a YAML file nor a preset"),
    ("lrk-eval --model none --tasks passkey --output_dir results", "model 'none'"),
    ("lrk-plan --model llama-9 --length 512", "model is 'llama-9'"),
    ("lrk-plan --model llama-3-8b --length 512 --lora_rang 16", "--lora_rang is not an argument"),
    ("torchrun --nproc 2 -m lrk.train.command config.yaml --lora_rang 16", "--lora_rang"),
    ("accelerate launch --config_file configs/none.yaml --module lrk.train.command x", "none.yaml"),
    ("for i in 1 2; do make no-such-target; done", "no-such-target"),
    ("make --dry-run test-oldest && python -m studies.none", "there is no module studies.none"),
    ("python -m studies.kill_and_resume --kilz 20", "--kilz"),
    ("python -m pytest tests/none", "there is no tests/none"),
    ("pip install '.[none]'", "lrk has no extra none"),
    ("pip install 'torch<1'", "pyproject.toml has torch"),
    ("python train.py", "only python -m is known"),
]
PYTHON = [
    ("import lrk\nlrk.none", "has no attribute 'none'"),
    ("print(1 + 1)   # 3", "prints 2"),
    ("print(1 + 1)   # not 2: it is", "prints 2"),
]
YAML = [
    ("- a", "it is no mapping"),
    ("max_stepz: 3", "max_stepz"),
    ("# mine.yaml\nmodel_name_or_path: none\noutput_dir: outputs/x\ndata: books", "none"),
]
BY_LANGUAGE = {"bash": BASH, "python": PYTHON, "yaml": YAML}
CASES = [(language, *case) for language, cases in BY_LANGUAGE.items() for case in cases]


@pytest.mark.parametrize(("language", "text", "message"), CASES, ids=lambda case: case)
def test_fault_is_found(language, text, message, page_run):
    fault = page_run("CONTRIBUTING.md").fault(Block("CONTRIBUTING.md", 1, language, text))
    assert fault is not None
    assert message in str(fault)


def test_what_is_printed_may_be_as_said(page_run):
    text = "print(1 + 1)   # 2\nprint(2.5)  # not 2: it is more\nprint('words')  # in words"
    block = Block("CONTRIBUTING.md", 1, "python", text)
    assert page_run("CONTRIBUTING.md").fault(block) is None
