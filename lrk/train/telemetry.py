"""What a run reports while it trains: speed, memory, `metrics.jsonl`, the progress bar."""

import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from lrk.atomic import SaveError, write_text
from lrk.progress import Advance, progress


class Throughput(TrainerCallback):
    """Trained tokens per second of wall time, without evaluations and saves."""

    def __init__(self) -> None:
        self.tokens = 0
        self.first_step: int | None = None  # where this start of the run began
        self._seconds = 0.0
        self._mark = time.perf_counter()

    def read(self) -> float:
        """Tokens per second since the last reading; NaN if no step has ended."""
        rate = self.tokens / self._seconds if self._seconds else float("nan")
        self.tokens, self._seconds = 0, 0.0
        return rate

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, *others: Any, **kwargs: Any
    ) -> None:
        self.first_step = state.global_step
        self.tokens, self._seconds = 0, 0.0
        self._mark = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        now = time.perf_counter()
        self._seconds += now - self._mark
        self._mark = now

    def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self._mark = time.perf_counter()

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        self._mark = time.perf_counter()


class MetricsFile(TrainerCallback):
    """Appends everything that is logged to a JSON-lines file, one object a step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Begin with what the checkpoint knows: a killed run may have logged more, or half a line.

        The checkpoint's history has every row that was logged before it, and a new run's has none.
        """
        if state.is_world_process_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, "".join(_line(row) for row in state.log_history))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line({"step": state.global_step, **(logs or {})}))
        except OSError as error:
            raise SaveError(
                f"{str(self.path)!r} could not be written ({error.strerror}); "
                "checkpoints are intact"
            ) from error


def _line(row: dict[str, Any]) -> str:
    return json.dumps({"step": row["step"], **row}) + "\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics file; a last line that a kill cut short is left out."""
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


class ProgressBar(TrainerCallback):
    """Steps on stderr, the last log beside them; the losses of an evaluation on stdout."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._advance: Advance | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, *others: Any, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            shown = progress("step", state.max_steps, state.global_step)
            self._advance = self._open.enter_context(shown)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if self._advance is not None:
            self._advance()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is None or not state.is_world_process_zero:
            return
        if self._advance is not None and "tokens_per_second" in logs:
            self._advance(
                0,
                note=f"loss {logs['loss']:.4f}, {logs['tokens_per_second']:,.0f} tokens/s, "
                f"peak {logs['peak_memory_gib']:.1f} GiB",
            )
        for name, value in logs.items():
            if name.startswith("eval_") and name.endswith("_loss"):
                print(f"step {state.global_step}: {name} {value:.4f}", flush=True)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away, also where a run ends otherwise."""
        self._open.close()
        self._advance = None
