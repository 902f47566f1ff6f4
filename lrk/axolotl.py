"""lrk in axolotl: `plugins: [lrk.axolotl.LrkPlugin]` in its YAML file.

Written against axolotl 0.19. The model is patched when all that axolotl itself does to it is done.
"""

from dataclasses import dataclass
from typing import Any

import torch
from axolotl.integrations.base import BasePlugin
from axolotl.utils.collators.batching import V2BatchSamplerDataCollatorForSeq2Seq

from lrk.hf import patch


@dataclass
class PackedCollator(V2BatchSamplerDataCollatorForSeq2Seq):
    """axolotl's collator of packed samples, which also says where each document ends."""

    def __call__(self, features: Any, return_tensors: Any = None) -> dict[str, Any]:
        """axolotl's batch with `cu_seq_lens_q` and `cu_seq_lens_k` in the place of its mask.

        axolotl counts the positions of each document from 0, and so those of padding behind it. The
        first token of a document is no label, which the last of another would predict.
        """
        batch = dict(super().__call__(features, return_tensors))
        batch.pop("attention_mask", None)
        is_first = batch["position_ids"] == 0
        starts = is_first.flatten().nonzero().flatten()
        ends = torch.cat([starts, torch.tensor([is_first.numel()])]).int()
        batch["labels"] = batch["labels"].masked_fill(is_first, -100)
        return batch | {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends}


class LrkPlugin(BasePlugin):
    """Patches the model, and with `sample_packing` hands documents to it."""

    def post_model_load(self, cfg: Any, model: Any) -> None:
        """Raises `ValueError` as `lrk.patch`, which see."""
        patch(model)

    def get_collator_cls_and_kwargs(
        self, cfg: Any, is_eval: bool = False
    ) -> tuple[type[PackedCollator], dict[str, Any]] | None:
        """The collator of packed samples where axolotl packs, else axolotl's own."""
        packs = cfg.eval_sample_packing if is_eval else cfg.sample_packing
        return (PackedCollator, {}) if packs else None
