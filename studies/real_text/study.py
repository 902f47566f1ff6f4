"""The runs of the study and the file of their results."""

import json
import platform
import time
from dataclasses import asdict
from pathlib import Path

from transformers import LlamaForCausalLM

from lrk.atomic import write_text
from studies.real_text.corpus import corpus, version
from studies.real_text.extension import extended, training_flop
from studies.real_text.measurement import Questions
from studies.real_text.methods import Method, methods, training_tokens
from studies.real_text.scale import Scale

CORPUS, BASE = "corpus", "base"


class Results:
    """One JSON file: what was studied, and a row a run.

        version    of the numbers of the study and of the texts
        python     whose library the texts are
        settings   the numbers of the study
        edges      of the buckets of positions and distances, in tokens
        documents  names of the held-out files
        asked      tokens of names that are asked for, by document and distance
        rows       one a method and seed, in the order of `methods`: `Measured`, and its training

    Args:
        path: it need not exist.

    Raises:
        ValueError: if the file is of a study of other numbers or texts.
    """

    def __init__(self, path: Path, scale: Scale) -> None:
        self.path = path
        self.order = [method.name for method in methods(scale)]
        self.content: dict = {
            "version": version(scale),
            "python": platform.python_version(),
            "settings": scale.settings(),
            "edges": list(scale.edges),
            "documents": [],
            "asked": [],
            "rows": [],
        }
        if path.exists():
            found = json.loads(path.read_text())
            if found["version"] != self.content["version"]:
                raise ValueError(
                    f"{str(path)!r} has results of version {found['version']}; this study is "
                    f"version {self.content['version']}: its numbers or the standard library are "
                    "other ones"
                )
            self.content = found

    @property
    def rows(self) -> list[dict]:
        return self.content["rows"]

    def describe(self, questions: Questions) -> None:
        self.content["documents"] = [document.name for document in questions.documents]
        self.content["asked"] = questions.counts

    def add(self, row: dict) -> None:
        self.rows.append(row)
        self.rows.sort(key=lambda each: (self.order.index(each["method"]), each["seed"]))
        self.write()

    def write(self) -> None:
        """A row is a line, so that a change of one shows as such."""
        head = {name: value for name, value in self.content.items() if name != "rows"}
        lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
        rows = ",\n".join(json.dumps(row) for row in self.rows)
        write_text(self.path, "{\n" + ",\n".join(lines) + f',\n"rows": [\n{rows}\n]\n' + "}\n")


def missing(rows: list[dict], seeds: int, scale: Scale) -> list[tuple[Method, int]]:
    """The runs that are not among the results yet. What trains nothing has no seeds."""
    done = {(row["method"], row["seed"]) for row in rows}
    return [
        (method, seed)
        for seed in range(seeds)
        for method in methods(scale)
        if (method.name, seed) not in done and not (seed and method.length is None)
    ]


def result(folder: Path, method: Method, seed: int, scale: Scale) -> dict:
    """One run, from the corpus and the pretrained model in `folder`."""
    texts = corpus(folder / CORPUS, scale)
    begin = time.process_time()
    model = LlamaForCausalLM.from_pretrained(folder / BASE)
    model = extended(model, method, seed, texts, scale)
    seconds = time.process_time() - begin
    questions = Questions(texts, scale)
    measured = questions.asked_within(model) if method.within else questions.asked_of(model)
    tokens = training_tokens(method, scale)
    return {
        "method": method.name,
        "seed": seed,
        "reach": method.reach,
        "temperature": round(method.temperature, 4),
        "training_tokens": tokens,
        "training_flop": training_flop(model, method, scale, tokens),
        "training_cpu_seconds": round(seconds, 1),
        **asdict(measured),
    }
