"""What pages work on, small: models under the hub's names, documents, folders of earlier runs."""

import contextlib
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import yaml
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    set_seed,
)

from lrk.data.command import main as lrk_data
from studies.tiny import SHAPE, prose, train_tokenizer

WINDOW = 2048
LONG_WINDOW = 131_072
LLAMA = "meta-llama/Meta-Llama-3-8B"
LLAMAS = (
    LLAMA,
    "meta-llama/Meta-Llama-3-8B-Instruct",
    "meta-llama/Llama-3.1-8B",
    "HuggingFaceTB/SmolLM2-135M",
)
QWENS = ("Qwen/Qwen3-8B",)
# Planned in the place of others.
ONE_LAYER = "one-layer"
# Analysed alone in the place of others: key tokens are those of which a model is sure.
SURE = "sure"
CONFIGURATION = {
    "model_name_or_path": LLAMA,
    "data": "my-documents.jsonl",
    "output_dir": "outputs/run",
}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: "
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}.{% endgeneration %}"
    "{% else %}{{ message.content }}{% endif %} {% endfor %}"
)

VOCABULARY = 640
# Of the wording of tasks of lrk-eval, which would be long in single letters.
TASKS = [
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.",
    "Memorize and track the chain(s) of variable assignment hidden in the following text.",
    "Question: Find all variables that are assigned the value in the text above. VAR = VAR",
    "Answer: According to the chain(s) of variable assignment in the text above, they are:",
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them.",
    "I will quiz you about the important information there. What is the pass key? Remember it.",
    "A special magic number is hidden within the following text. Make sure to memorize it.",
    "One of the special magic numbers for mentioned in the provided text are uuids hidden",
]

# Files of rows, by the first folder or the file that pages name.
ROWS = ("my-documents.jsonl", "my-long-documents.jsonl", "held-out.jsonl", "long-documents.jsonl")
CONVERSATIONS = ("general-instructions.jsonl", "code-instructions.jsonl", "my-chats.jsonl")


class StandIns:
    """Makes each stand-in once, in `store`, and copies it to where a page needs it."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._common = store / "common"
        _write_common(self._common)

    def set_up(self, folder: Path) -> None:
        """The working folder of a page, with all that a user brings."""
        shutil.copytree(self._common, folder)

    def provide(self, name: str, folder: Path) -> None:
        """What an earlier run would have left under `name`, unless the page has made it itself."""
        for path, make in LEFT.items():
            if (name == path or name.startswith(f"{path}/")) and not (folder / path).exists():
                made = self._store / "left" / path
                if not made.exists():
                    made.parent.mkdir(parents=True, exist_ok=True)
                    make(self._common, made)
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if made.is_dir() else shutil.copyfile)(made, folder / path)


def _write_common(folder: Path) -> None:
    tokenizer = train_tokenizer([prose(200, 0), *TASKS * 4], VOCABULARY)
    for number, name in enumerate((*LLAMAS, *QWENS)):
        _write_model(folder / name, tokenizer, name in QWENS, seed=number)
    _write_model(folder / ONE_LAYER, tokenizer, layers=1)
    _trained(folder, folder / SURE, sure=8.0)
    for name in ROWS:
        _write_rows(folder / name, [{"text": prose(20 + n, n)} for n in range(30)])
    for name in CONVERSATIONS:
        _write_rows(folder / name, [{"messages": _conversation(n)} for n in range(40)])
    for name in ("books", "other", "corpus"):
        _write_rows(folder / name / "0.jsonl", [{"text": prose(20 + n, n)} for n in range(20)])
        for number in (1, 2):
            (folder / name / f"{number}.txt").write_text(prose(400, 20 + number))
    for name in ("code", "src/package", "my-project/package"):
        (folder / name).mkdir(parents=True)
        for number in range(4):
            (folder / name / f"{number}.py").write_text(f"# {prose(60, 30 + number)}\n")
    _write_rows(folder / "outputs" / "gpu" / "correct.json", [])
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()


def _write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _conversation(seed: int) -> list[dict[str, str]]:
    turns = ("user", "assistant", "user", "assistant")
    return [{"role": role, "content": prose(3, 10 * seed + n)} for n, role in enumerate(turns)]


def _write_model(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    qwen: bool = False,
    seed: int = 0,
    layers: int = 2,
) -> None:
    shape = SHAPE | {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": WINDOW,
        "num_hidden_layers": layers,
        "initializer_range": 0.2,
    }
    set_seed(seed)
    model = (
        Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=8))
        if qwen
        else LlamaForCausalLM(LlamaConfig(**shape))
    )
    model.save_pretrained(folder)
    tokenizer.chat_template = CHAT_TEMPLATE if "Instruct" in folder.name or qwen else None
    tokenizer.save_pretrained(folder)


def _trained(
    common: Path, folder: Path, window: int = LONG_WINDOW, seed: int = 1, sure: float = 1.0
) -> None:
    """A model that is a little different, and reaches farther; `sure` of whatever it predicts."""
    model = LlamaForCausalLM.from_pretrained(common / LLAMA)
    model.config.max_position_embeddings = window
    set_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        model.lm_head.weight *= sure
    model.save_pretrained(folder)
    for file in (common / LLAMA).glob("tokenizer*"):
        shutil.copy(file, folder)


def _prepared(common: Path, folder: Path) -> None:
    with contextlib.chdir(common):
        words = ["prepare", "--data", "books", "--tokenizer", LLAMA, "--output_dir", str(folder)]
        assert lrk_data(words) == 0


def _analysis(common: Path, folder: Path) -> None:
    _trained(common, folder.parent / "analysed")
    words = f"analyze --model {LLAMA} --data books --length 40 --samples 8 --min_lift 0.2"
    with contextlib.chdir(common):
        others = ["--extended", str(folder.parent / "analysed"), "--output_dir", str(folder)]
        assert lrk_data([*words.split(), *others]) == 0


def _run_config(common: Path, file: Path) -> None:
    file.write_text(yaml.safe_dump(CONFIGURATION))


def _rope_factors(common: Path, file: Path) -> None:
    pairs = SHAPE["hidden_size"] // SHAPE["num_attention_heads"] // 2
    file.write_text(json.dumps({"long_factor": [1.0 + pair for pair in range(pairs)]}))


# What pages take from an earlier run that they do not show.
LEFT: dict[str, Callable[[Path, Path], None]] = {
    "outputs/llama": _trained,
    "outputs/llama-3-8b-131072": _trained,
    "outputs/run": _trained,
    "outputs/16k": partial(_trained, window=16_384),
    "outputs/128k": _trained,
    "outputs/analysis": _analysis,
    "original": partial(_trained, seed=2),
    "extended": partial(_trained, seed=3),
    "chat": partial(_trained, seed=4),
    "coder": partial(_trained, seed=5),
    "prepared": _prepared,
    "config.yaml": _run_config,
    "factors.json": _rope_factors,
}
