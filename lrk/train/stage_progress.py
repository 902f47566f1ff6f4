"""How far the stages of a run are, in `stages.json`, and what they measured, in `stages.md`."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from lrk import atomic
from lrk.train.collective import done_by_main, wait_for_all
from lrk.train.evaluations import losses_by_step
from lrk.train.identity import is_way
from lrk.train.stages import ORIGINAL, Stage, StagedRun

STAGES_FILE = "stages.json"
TABLE_FILE = "stages.md"

WAITING, TRAINED, FINISHED = "waiting", "trained", "finished"
BEFORE = "losses of the original"

# Rows that a trainer logged, each with a `step`.
History = list[dict[str, Any]]


class Progress:
    """How far each stage is, in `stages.json` of the run's folder."""

    def __init__(self, staged: StagedRun) -> None:
        self._path = staged.output_dir / STAGES_FILE
        self._stages: dict[str, dict[str, Any]] = {
            stage.folder.name: {"state": WAITING, "settings": _as_json(stage.settings)}
            for stage in staged.stages
        }

    def read(self) -> None:
        """Take over what the file knows.

        Raises:
            ValueError: if a stage that is trained has other settings now, or is none any more.
        """
        for name, old in json.loads(self._path.read_text(encoding="utf-8")).items():
            if old["state"] == WAITING:
                continue
            what = f"stage {name!r} of {str(self._path.parent)!r} is {old['state']}"
            help = "choose another output_dir, or overwrite_output_dir"
            if name not in self._stages:
                raise ValueError(f"{what}, but the configuration has no such stage now: {help}")
            settings = self._stages[name]["settings"]
            for key in {**old["settings"], **settings}:
                was, now = old["settings"].get(key), settings.get(key)
                if was != now and not is_way(key):
                    raise ValueError(f"{what} with {key} {was!r}, which is {now!r} now: {help}")
            self._stages[name] = old

    def state(self, stage: Stage) -> str:
        return self._stages[stage.folder.name]["state"]

    def note(self, stage: Stage, state: str, history: History | None = None) -> None:
        """Write that a stage has come so far.

        Args:
            history: what it logged, of which the last evaluation at each length is kept, and that
                of the original model before its first step.
        """
        entry = self._stages[stage.folder.name]
        entry["state"] = state
        if history is not None:
            by_step = losses_by_step(history)
            entry["losses"] = {
                str(length): loss
                for _, found in sorted(by_step.items())
                for length, loss in found.items()
            }
            if stage.merge is None and stage.start == ORIGINAL and 0 in by_step:
                entry[BEFORE] = {str(length): loss for length, loss in by_step[0].items()}
        wait_for_all()
        done_by_main(self.write)

    def table(self) -> str:
        """Markdown: a row for the original model and each stage, a column for each length."""
        rows = {name: entry.get("losses", {}) for name, entry in self._stages.items()}
        before = [entry[BEFORE] for entry in self._stages.values() if BEFORE in entry]
        return "\n".join(_table({ORIGINAL: before[0], **rows} if before else rows)) + "\n"

    def write(self) -> None:
        atomic.write_text(self._path, json.dumps(self._stages, indent=1) + "\n")


def _table(rows: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    lengths = sorted({int(length) for losses in rows.values() for length in losses})
    yield f"| stage | {' | '.join(f'{length:,}' for length in lengths)} |"
    yield "|---" * (len(lengths) + 1) + "|"
    for name, losses in rows.items():
        cells = [f"{losses[str(n)]:.4f}" if str(n) in losses else "" for n in lengths]
        yield f"| {' | '.join([name, *cells])} |"
    if lengths:
        yield ""
        yield "Held-out loss in nats a token, at simulated lengths."


def _as_json(settings: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(settings, default=str))
