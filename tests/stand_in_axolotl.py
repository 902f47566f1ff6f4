"""What `lrk.axolotl` takes from axolotl, which is not installed with lrk: the names, and the batch.

docs/guides/axolotl-llama-factory.md says what axolotl 0.19 itself made of the plugin.
"""

from types import ModuleType

import torch

PLUGIN, COLLATOR = "axolotl.integrations.base", "axolotl.utils.collators.batching"


class BasePlugin:
    """Its hooks do nothing."""


class V2BatchSamplerDataCollatorForSeq2Seq:
    """Documents of each row end to end, numbered from 1 in the mask; padding counts from 0 too."""

    def __call__(self, features, return_tensors=None):
        width = max(sum(len(document) for document in row) for row in features)
        batch = {name: [] for name in ("input_ids", "labels", "position_ids", "attention_mask")}
        for row in features:
            tokens = [token for document in row for token in document]
            padding = width - len(tokens)
            places = [place for document in row for place in range(len(document))]
            numbers = [number for number, document in enumerate(row, 1) for _ in document]
            batch["input_ids"].append(tokens + [0] * padding)
            batch["labels"].append(tokens + [-100] * padding)
            batch["position_ids"].append([*places, *range(padding)])
            batch["attention_mask"].append(numbers + [0] * padding)
        return {name: torch.tensor(rows) for name, rows in batch.items()}


def modules():
    """By name, for `sys.modules`."""
    made = {}
    for name in (PLUGIN, COLLATOR):
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            made.setdefault(".".join(parts[:end]), ModuleType(".".join(parts[:end])))
    made[PLUGIN].BasePlugin = BasePlugin
    made[COLLATOR].V2BatchSamplerDataCollatorForSeq2Seq = V2BatchSamplerDataCollatorForSeq2Seq
    return made
