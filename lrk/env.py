"""What a bug report needs, and whether each operation computes the right thing on this machine.

    python -m lrk.env

Prints versions, processor and GPU, and which versions lie outside of what was tested. Then runs
every operation forward and backward, in each implementation that runs here, and judges it by the
rule of `lrk.testing`; and compares what a patched model of each type generates with the stock
model. Exits with 1 if anything is wrong.
"""

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lrk.command import run_command
from lrk.command_line import CommandParser, add_answers, looks
from lrk.hf import SUPPORTED
from lrk.hf.canary import model_fault
from lrk.kernels.attention import attention, attention_reference, attention_triton
from lrk.kernels.cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_reference,
    linear_cross_entropy_triton,
)
from lrk.kernels.rope import rope, rope_reference, rope_triton
from lrk.kernels.target import interpreting
from lrk.testing import GRADIENT_FACTOR, OUTPUT_FACTOR, assert_as_exact_as, max_error
from lrk.versions import installed_version, outside_tested_ranges

PACKAGES = (
    "lrk",
    "torch",
    "triton",
    "transformers",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "peft",
    "torchao",
    "bitsandbytes",
    "flash-attn",
    "flash-attn-3",
    "flash-attn-4",
    "numpy",
    "einops",
)

LOOKS = looks(
    "Show what a bug report needs: versions, processor, GPU, and whether each operation\n"
    "and each model type computes the right thing on this machine.",
    [("put it into a file", "python -m lrk.env > environment.txt")],
)

_SECRET = re.compile(r"token$|key$|password|secret", re.IGNORECASE)

Implementation = Callable[..., Any]
Results = list[Tensor]


def environment(command: Sequence[str] | None = None) -> dict[str, Any]:
    """Versions and hardware, as JSON takes them; no variables of the environment, no host name.

    A command line is recorded beside them, without the values of options that are tokens or keys.
    """
    record: dict[str, Any] = {} if command is None else {"command": _without_secrets(command)}
    return record | {
        "packages": {name: installed_version(name) for name in PACKAGES},
        "outside_tested_range": outside_tested_ranges(),
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
    }


class Check(NamedTuple):
    """One implementation of one operation beside its reference; `fault` is None if it is right."""

    operation: str
    implementation: str
    dtype: torch.dtype
    error: float
    fault: str | None


def self_test() -> Iterator[Check]:
    """Every operation in each implementation that runs on this machine."""
    cuda = torch.cuda.is_available()
    kernels = "Triton" if cuda else "Triton, interpreted"
    for operation in (_rope, _attention, _linear_cross_entropy):
        yield _check(operation, "CPU", torch.device("cpu"), torch.float32)
        if cuda or interpreting():
            device = torch.device("cuda" if cuda else "cpu")
            for dtype in (torch.float32, torch.bfloat16) if cuda else (torch.float32,):
                yield _check(operation, kernels, device, dtype)


class _Case(NamedTuple):
    """An operation on tensors that need gradients."""

    name: str
    tensors: list[Tensor]
    plain: Implementation
    on_cpu: Implementation
    triton: Implementation
    truth: Implementation


def _check(
    operation: Callable[[torch.device], _Case],
    implementation: str,
    device: torch.device,
    dtype: torch.dtype,
) -> Check:
    case = operation(device)
    tested = case.on_cpu if implementation == "CPU" else case.triton
    rounded = [tensor.to(device, dtype) for tensor in case.tensors]
    try:
        ours = _results(tested, rounded)
    # Whatever a compiler or driver raises is what the report is for.
    except Exception as error:
        return Check(case.name, implementation, dtype, float("nan"), _one_line(error))
    plain = _results(case.plain, rounded)
    truth = _results(case.truth, [tensor.double() for tensor in rounded])
    largest, fault = 0.0, None
    for index, (x, y, z) in enumerate(zip(ours, plain, truth, strict=True)):
        is_gradient = index >= len(truth) - len(rounded)
        largest = max(largest, max_error(x, z))
        try:
            factor = GRADIENT_FACTOR if is_gradient else OUTPUT_FACTOR
            assert_as_exact_as(x, y, z, factor, "gradient" if is_gradient else "output")
        except AssertionError as assertion:
            fault = fault or str(assertion)
    return Check(case.name, implementation, dtype, largest, fault)


def _results(implementation: Implementation, tensors: list[Tensor]) -> Results:
    """Outputs, then the gradients of all inputs for an upstream gradient of ones."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    outputs = implementation(*leaves)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    ones = [torch.ones_like(output) for output in outputs]
    return outputs + list(torch.autograd.grad(outputs, leaves, ones))


def _rope(device: torch.device) -> _Case:
    """32 of the positions below 131,072, base 5e5."""
    positions = torch.arange(31, 131_072, 4096, device=device)[None]
    inv_freq = 5e5 ** (-torch.arange(0, 64, 2, dtype=torch.float64, device=device) / 64)

    def plain(q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        """Float32 angles, as in transformers."""
        angles = (positions[..., None].float() * inv_freq.float())[:, None]
        cos, sin = angles.cos().to(q.dtype), angles.sin().to(q.dtype)

        def rotated(x: Tensor) -> Tensor:
            first, second = x.chunk(2, dim=-1)
            return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

        return rotated(q), rotated(k)

    def of(implementation: Implementation) -> Implementation:
        return lambda q, k: implementation(q, k, positions, inv_freq)

    tensors = _normal((1, 4, 32, 64), (1, 2, 32, 64))
    return _Case("rope", tensors, plain, of(rope), of(rope_triton), of(rope_reference))


def _attention(device: torch.device) -> _Case:
    """Two documents of 20 and 51 tokens in a row, grouped queries."""
    documents = torch.tensor([0, 20, 71], dtype=torch.int32, device=device)

    def of(implementation: Implementation) -> Implementation:
        return lambda q, k, v: implementation(q, k, v, cu_seqlens=documents)

    tensors = _normal((1, 4, 71, 64), (1, 2, 71, 64), (1, 2, 71, 64))
    reference = of(attention_reference)
    return _Case("attention", tensors, reference, of(attention), of(attention_triton), reference)


def _linear_cross_entropy(device: torch.device) -> _Case:
    """60 tokens of which some are ignored, a vocabulary of 301."""
    labels = torch.arange(60, device=device) * 5
    labels[::7] = -100

    def of(implementation: Implementation) -> Implementation:
        return lambda hidden, weight: implementation(hidden, weight, labels)

    tensors = _normal((60, 64), (301, 64))
    reference = of(linear_cross_entropy_reference)
    return _Case(
        "linear_cross_entropy",
        tensors,
        reference,
        of(linear_cross_entropy),
        of(linear_cross_entropy_triton),
        reference,
    )


def _normal(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]


def _without_secrets(command: Sequence[str]) -> list[str]:
    """`--hub_token=x` and `--hub_token x` without x, and the program without its folder."""
    words, hidden = [], False
    for word in command:
        option, equals, _ = word.partition("=")
        is_secret = word.startswith("--") and bool(_SECRET.search(option))
        words.append(
            "(hidden)" if hidden else option + "=(hidden)" if is_secret and equals else word
        )
        hidden = is_secret and not equals
    return [Path(word).name for word in words[:1]] + words[1:]


def _commit() -> str | None:
    """The git commit of lrk's own checkout, with `+` where files of it were changed."""

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    try:
        # lrk may be installed inside the checkout of something else.
        if git("ls-files", "--error-unmatch", "__init__.py").returncode:
            return None
        commit = git("rev-parse", "HEAD").stdout.strip()
        return commit + ("+" if git("diff", "--quiet", "HEAD").returncode else "")
    except OSError:
        return None


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    memory = properties.total_memory / 2**30
    return f"{properties.name}, {memory:.0f} GiB, {properties.major}.{properties.minor}"


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _print_environment() -> None:
    found = environment()
    packages, outside = found.pop("packages"), found.pop("outside_tested_range")
    for name, value in {**packages, **found}.items():
        text = ", ".join(value) or "none" if isinstance(value, list) else str(value)
        if name in outside:
            text += f"  not tested: lrk was with {outside[name]}"
        print(f"{name:<14} {text}")
    for name in outside.keys() - packages.keys() - found.keys():
        print(f"{name:<14} {installed_version(name)}  not tested: lrk was with {outside[name]}")


def parser() -> CommandParser:
    """The parser of a command without options."""
    parser = CommandParser(prog="python -m lrk.env", usage="python -m lrk.env", **LOOKS)
    add_answers(parser)
    return parser


def main(argv: Sequence[str] = ()) -> int:
    """Print the block; 1 if an operation is wrong."""
    return run_command("python -m lrk.env", lambda: _run(argv))


def _run(argv: Sequence[str]) -> int:
    parser().parse_args(argv)
    _print_environment()
    print()
    faults = 0
    begin = time.perf_counter()
    for check in self_test():
        faults += check.fault is not None
        verdict = f"wrong: {check.fault}" if check.fault else "right"
        name = f"{check.operation}, {check.implementation}, {str(check.dtype)[6:]}"
        print(f"{name:<50} error {check.error:.1e}  {verdict}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for model_type in SUPPORTED:
        try:
            fault = model_fault(model_type, device)
        # Whatever a release of transformers raises is what the report is for.
        except Exception as error:
            fault = _one_line(error)
        faults += fault is not None
        name = f"model, {model_type}, {device.type}"
        print(f"{name:<50} {f'wrong: {fault}' if fault else 'as the stock model'}")
    if not (torch.cuda.is_available() or interpreting()):
        print("Triton kernels were not run: there is no GPU")
    print(f"{faults} wrong, {time.perf_counter() - begin:.1f} s")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
