"""The command `lrk-data assemble`: its options, and what it says at the end."""

from argparse import ArgumentParser, Namespace
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from lrk.data.assemble.arguments import CHUNK_TOKENS, METHODS, SHARD_TOKENS, Assembly
from lrk.data.assemble.assembly import read_gains
from lrk.data.assemble.verification import Verification
from lrk.eval.longppl import SHORT_CONTEXT, SHORT_STRIDE
from lrk.recipe.prepared import Manifest

COUNTS = ("documents_read", "duplicates", "assembled", "parts", "documents_used")


def add_arguments(parser: ArgumentParser) -> None:
    """Those of `Assembly` and `Verification`."""
    add = parser.add_argument_group("samples").add_argument
    add("--data", nargs="+", required=True, help="folders that lrk-data prepare wrote")
    add("--method", required=True, help=f"one of {', '.join(METHODS)}")
    add("--target_length", type=int, default=131_072, help="tokens of a sample (default: 131072)")
    add("--chunk_tokens", type=int, help=f"of negatives, about (default: {CHUNK_TOKENS})")
    add("--samples", type=int, help="at most (default: as many as there are tokens for)")
    add("--seed", type=int, default=42, help="of the order of documents (default: 42)")
    add(
        "--shard_tokens",
        type=int,
        default=SHARD_TOKENS,
        help=f"tokens of the samples in a shard (default: {SHARD_TOKENS})",
    )
    add = parser.add_argument_group("verification by a model").add_argument
    add("--verify_model", help="keep what long context helps this model (default: keep all)")
    add("--verify_gguf_file", help="GGUF file in its folder; its weights are dequantised")
    add("--verify_dtype", help="dtype of its weights (default: auto)")
    add("--min_gain", type=float, help="nats a token that a kept sample gains (default: 0)")
    add("--short_context", type=int, help=f"in tokens (default: {SHORT_CONTEXT})")
    add("--short_stride", type=int, help=f"between short contexts (default: {SHORT_STRIDE})")
    add("--device", help="of the model (default: the accelerator if there is one)")


def assembly_of(namespace: Namespace) -> Assembly:
    """What the options ask for.

    Raises:
        ValueError: as `Assembly` and `Verification`, and for options of a model without one.
    """
    given = {
        item.name: getattr(namespace, item.metadata["argument"])
        for item in fields(Verification)
        if getattr(namespace, item.metadata["argument"]) is not None
    }
    if "model" not in given:
        for name in [*(item.metadata["argument"] for item in fields(Verification)), "device"]:
            if (value := getattr(namespace, name)) is not None:
                raise ValueError(f"{name} is {value!r} without verify_model, which it is for")
    own = [item.name for item in fields(Assembly) if item.name != "verification"]
    return Assembly(
        **{name: getattr(namespace, name) for name in own},
        verification=Verification(**given) if given else None,
    )


def report(folder: str, manifest: Manifest, summary: dict[str, int]) -> str:
    """The summary of a folder, in words."""
    kept, tokens = summary["documents"], summary["tokens"]
    arguments: dict[str, Any] = dict(manifest.arguments)
    lines = [
        f"{folder}: {kept:,} samples of {arguments['target_length']:,} tokens, {tokens:,} in all, "
        f"{len(manifest.shards or [])} shards",
        f"{summary['parts'] / kept:.1f} parts a sample, of {summary['documents_used']:,} of "
        f"{summary['documents_read']:,} documents; {summary['duplicates']:,} that equal an earlier "
        "one are left out",
    ]
    if gains := read_gains(Path(folder).expanduser(), manifest):
        of_all = np.array([gain for gain, _ in gains])
        of_kept = np.array([gain for gain, is_kept in gains if is_kept])
        low, middle, high = np.quantile(of_all, [0.1, 0.5, 0.9])
        lines.append(
            f"verified: {kept:,} of {len(gains):,} kept ({kept / len(gains):.1%}); they gain "
            f"{of_kept.mean():.4f} nats a token of long context, all {of_all.mean():.4f} (10 % "
            f"below {low:.4f}, half below {middle:.4f}, 90 % below {high:.4f})"
        )
    return "\n".join(lines)
