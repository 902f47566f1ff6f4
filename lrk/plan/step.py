"""A whole training step under a ledger: forward, loss, backward, clipping, optimizer.

The model is the real one, patched by lrk; with fake tensors nothing is computed, and an 8B model
costs no memory.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface, AutoModelForCausalLM, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lrk.hf import patch
from lrk.hf.architectures import architecture_of
from lrk.hf.backends import LRK as LRK_ATTENTION
from lrk.hf.distillation import (
    ORIGINAL,
    VIEWS,
    Distillation,
    TeacherHead,
    last_hidden,
    short_context,
)
from lrk.hf.groups import layer_groups
from lrk.hf.sequence_split import split_batch
from lrk.hf.sinks import check_sinks
from lrk.layer_kinds import PER_LAYER, layer_kinds
from lrk.memory import checkpointing
from lrk.memory.host_optimizer import HostOptimizer
from lrk.memory.offload import HostCopies
from lrk.memory.step_in_backward import StepInBackward
from lrk.plan import flash_attention
from lrk.plan.four_bits import is_in_4_bits, put_in_4_bits, quantise, scales_of
from lrk.plan.ledger import (
    BACKWARD,
    CLIPPING,
    FORWARD,
    GRADIENTS,
    HEAD,
    HOST,
    OPTIMIZER,
    RECOMPUTED,
    SAVED,
    TEACHER,
    UPDATE,
    WEIGHTS,
    Collective,
    Ledger,
    Moment,
    Usage,
    here,
)
from lrk.plan.optimizers import LowBit, low_bit_states, make_optimizer, make_states
from lrk.plan.prices import prices_on
from lrk.plan.settings import IMPLEMENTATIONS, LOW_BIT, LRK, Settings
from lrk.plan.sharding import VIEWS as VIEW_WARNINGS
from lrk.plan.sharding import as_one_of, shard, silenced, unreduced_gradients
from lrk.plan.traffic import KEYS, PARAMETERS, check_seen, traffic
from lrk.plan.workspace import Device

GPU_GRANULARITY = 512

# transformers' sdpa leaves out the (S, S) mask where positions are contiguous, but it cannot read
# fake ones and would make it. A backend without a mask function never has one.
UNMASKED_SDPA = "lrk_plan_unmasked_sdpa"
AttentionInterface.register(UNMASKED_SDPA, sdpa_attention_forward)
_TRACED_ATTENTION = {"sdpa": UNMASKED_SDPA, **flash_attention.BACKENDS}


class Trace(NamedTuple):
    """What a step allocates at most in each of its moments, the FLOPs of its products, and the
    bytes that it sends to other processes."""

    usages: list[Usage]
    flops: int
    sent: Mapping[Collective, int]


def trace(config: PretrainedConfig, settings: Settings, layers: int | None = None) -> Trace:
    """Trace a step on fake tensors.

    Args:
        config: of a text model of one of `lrk.hf.SUPPORTED`.
        layers: of the model that is traced; None for all of the config's.

    Raises:
        ValueError: for another model type, and for settings whose step would be counted wrongly.
    """
    settings = resolved(config, settings)
    _check_model(config, settings)
    return as_one_of(settings.fsdp, _trace, config, settings, layers)


def _trace(config: PretrainedConfig, settings: Settings, layers: int | None) -> Trace:
    device = _device(settings)
    prices = prices_on(device, documents_of(settings))
    ledger = Ledger(prices, device.granularity, traffic)
    model = meta_model(config, settings, layers)
    # The frequencies stay real: they are made from numbers, and are small.
    materialise_buffers(model)
    on_host = SAVED if device.kind == "cpu" else HOST
    # No package need be installed where a step is only planned.
    as_installed = replace(settings, attention=LRK_ATTENTION)
    patch_as(model, as_installed, _CountedCopies(ledger, on_host))
    attention = settings.attention if settings.implementation == LRK else "sdpa"
    if attention in _TRACED_ATTENTION:
        causal_lm_of(model).set_attn_implementation(_TRACED_ATTENTION[attention])
    teacher = frozen_teacher(config, as_installed, layers)
    if teacher is not None and attention in _TRACED_ATTENTION:
        teacher.set_attn_implementation(_TRACED_ATTENTION[attention])  # type: ignore[operator]
    with FakeTensorMode(allow_non_fake_inputs=True):
        materialise_parameters(model)
        group = shard(model, settings) if settings.fsdp > 1 else None
        if teacher is not None:
            materialise_parameters(teacher)
        with silenced(VIEW_WARNINGS):
            run_step(model, settings, ledger, group, teacher=teacher)
    own = None if group is None else group.group_name
    sent = {
        Collective(each.name, KEYS if each.group == own else PARAMETERS): nbytes
        for each, nbytes in ledger.sent.items()
    }
    if settings.fsdp > 1:
        check_seen(sent, [PARAMETERS] if own is None else [PARAMETERS, KEYS])
    return Trace(ledger.usage(), ledger.flops, sent)


def _check_model(config: PretrainedConfig, settings: Settings) -> None:
    """Refuse what a trace of this model would count wrongly."""
    stock = architecture_of(config, "the config is")
    name, windows = config.model_type, [kind.window for kind in layer_kinds(config) if kind.window]
    if hasattr(type(config), "num_experts_per_tok") and settings.dtype != "bfloat16":
        raise ValueError(
            f"dtype is {settings.dtype}, and model type {name!r} has experts, whose products are "
            "planned in bfloat16 alone"
        )
    caps = getattr(config, "attn_logit_softcapping", None) is not None
    if settings.gpu == "cpu" and caps:
        raise ValueError(
            f"gpu is 'cpu', and model type {name!r} has a softcap, whose scores an attention on a "
            "CPU forms in strips that are not planned: plan for a GPU"
        )
    if settings.implementation == LRK:
        check_sinks(config, "attention", settings.attention)
        if settings.attention != "sdpa":
            return
    chosen = "attention" if settings.implementation == LRK else "implementation"
    said = f"{chosen} is {getattr(settings, chosen)!r}, which takes PyTorch's attention"
    if caps or not stock.causal_lm._supports_sdpa:  # type: ignore[attr-defined]
        raise ValueError(f"{said}; model type {name!r} has a softcap or sinks, and that has none")
    if windows and min(windows) < settings.length:
        raise ValueError(
            f"{said}; that has no windows, so that transformers makes a mask of all pairs for the "
            f"model's sliding window of {min(windows):,}, which is not planned"
        )


class _CountedCopies(HostCopies):
    """What they hold on the host is counted as `part`, and what is on its way as saved."""

    def __init__(self, ledger: Ledger, part: str) -> None:
        super().__init__()
        self._ledger, self._part = ledger, part

    def empty_on_host(self, tensor: Tensor) -> Tensor:
        self._ledger.hold([tensor], SAVED)
        with self._ledger.counting_as(self._part):
            return super().empty_on_host(tensor)


def _device(settings: Settings) -> Device:
    return Device("cpu", 1) if settings.gpu == "cpu" else Device("cuda", GPU_GRANULARITY)


def meta_model(
    config: PretrainedConfig, settings: Settings, layers: int | None = None
) -> nn.Module:
    """A model without memory, in the settings' dtype and with their adapters."""
    config = copy.deepcopy(config)
    if layers is not None:
        config.num_hidden_layers = layers
        for name in PER_LAYER:
            if getattr(config, name, None):
                setattr(config, name, getattr(config, name)[:layers])
    dtype = getattr(torch, settings.dtype)
    # What is patched need not have PyTorch's attention.
    stock = "eager" if settings.implementation == LRK else "sdpa"
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=stock)
    if settings.load_in_4bit:
        put_in_4_bits(model, dtype, torch.bfloat16 if settings.bf16 else dtype)
    if settings.lora_rank:
        from peft import LoraConfig, get_peft_model

        adapters = LoraConfig(
            r=settings.lora_rank,
            target_modules="all-linear",
            modules_to_save=list(settings.lora_modules_to_save) or None,
            task_type="CAUSAL_LM",
        )
        with torch.device("meta"):
            model = get_peft_model(model, adapters)
    return model.train()


def frozen_teacher(
    config: PretrainedConfig, settings: Settings, layers: int | None = None
) -> nn.Module | None:
    """The second model of `distill` original, without memory but for its buffers; else None."""
    if settings.distill != ORIGINAL:
        return None
    without: dict[str, Any] = {"lora_rank": 0, "lora_modules_to_save": (), "distill": "none"}
    bare = replace(settings, **without, distill_length=0)
    teacher = meta_model(config, bare, layers).requires_grad_(False).eval()
    materialise_buffers(teacher)
    patch_as(teacher, bare, HostCopies())
    return teacher


def patch_as(model: nn.Module, settings: Settings, copies: HostCopies) -> None:
    """Patch as the implementation says; checkpoint activations if the settings do.

    Args:
        copies: for activations that are offloaded, if they are.
    """
    kernels: dict[str, Any] = dict(IMPLEMENTATIONS[settings.implementation])
    if settings.implementation == LRK:
        kernels["attention"] = settings.attention
    if any(kernels.values()) or settings.tile_tokens:
        patch(model, **kernels, tile_tokens=settings.tile_tokens)
    if settings.activation_checkpointing:
        checkpointing.enable(
            causal_lm_of(model),
            settings.keep_attention,
            copies if settings.offload_activations else None,
            settings.layers_per_checkpoint,
        )


def causal_lm_of(model: Any) -> Any:
    """The transformers model inside a peft model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def materialise_parameters(
    model: nn.Module, fill: Callable[[Tensor], Any] = lambda parameter: None
) -> None:
    """Give every parameter memory (fake memory in a fake mode), shared where it was shared."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is None:
                continue
            if id(old) not in made:
                tensor = torch.empty(old.shape, dtype=old.dtype)
                fill(tensor)
                made[id(old)] = (
                    quantise(tensor, old)
                    if is_in_4_bits(old)
                    else nn.Parameter(tensor, requires_grad=old.requires_grad)
                )
            module._parameters[name] = made[id(old)]


def materialise_buffers(model: nn.Module) -> None:
    """Ones in place of buffers on the meta device, which are RoPE's frequencies."""
    for module in model.modules():
        for name, old in module._buffers.items():
            if old is not None:
                module._buffers[name] = torch.ones(old.shape, dtype=old.dtype)


def run_step(
    model: nn.Module,
    settings: Settings,
    ledger: Ledger | None = None,
    group: dist.ProcessGroup | None = None,
    loss_factor: float = 0.5,
    teacher: nn.Module | None = None,
) -> None:
    """Take one training step after others; on real and on fake tensors.

    Args:
        ledger: records the step, if there is one.
        group: processes that share a sample with this one.
        loss_factor: what the loss is multiplied by, as by a loss scale. On a CPU a factor of 1
            spares lrk's loss two products that a GPU always makes.
        teacher: that of `frozen_teacher`, with its weights.
    """
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    stepped = trained if ledger is None else [_plain(parameter) for parameter in trained]
    optimizer, states = _make_optimizer(settings, stepped)
    batch = make_batch(settings)
    if group is not None:
        batch = split_batch(batch, group)
    device = parameters[0].device.type

    def forward() -> Tensor:
        taught = _with_teacher(model, batch, settings, teacher, ledger)
        _enter(ledger, FORWARD)
        loss: Tensor = model(**taught, use_cache=False).loss
        return loss

    def compute() -> None:
        with torch.autocast(device, torch.bfloat16) if settings.bf16 else nullcontext():
            loss = forward()
        (loss * loss_factor).backward()

    accumulated = (
        _earlier_gradients(model, trained, settings, compute) if settings.accumulates else []
    )
    host_steps = settings.offload_optimizer and settings.gpu != "cpu"
    if ledger is not None:
        ledger.hold([*parameters, *scales_of(model), *model.buffers()], WEIGHTS)
        if teacher is not None:
            ledger.hold([*teacher.parameters(), *teacher.buffers()], WEIGHTS)
        ledger.hold(states, HOST if host_steps else OPTIMIZER)
        if host_steps:
            _count_steps_as_host(optimizer, ledger)
        ledger.hold(accumulated, GRADIENTS)
        ledger.hold([value for value in batch.values() if isinstance(value, Tensor)], SAVED)
    del accumulated
    with nullcontext() if ledger is None else _recording(model, ledger):
        if settings.optimizer_in_backward:
            StepInBackward(optimizer)
        compute()
        _hand_on_gradients(trained, stepped)
        _enter(ledger, CLIPPING)
        if settings.clips:
            torch.nn.utils.clip_grad_norm_(stepped, 1.0)
        _enter(ledger, UPDATE)
        optimizer.step()
        for parameter in stepped:
            parameter.grad = None


def _earlier_gradients(
    model: Any, trained: list[nn.Parameter], settings: Settings, compute: Callable[[], None]
) -> list[Tensor]:
    """Those of an earlier micro-batch, which a backward pass meets."""
    if settings.fsdp > 1 and not settings.sync_each_batch:
        model.set_requires_gradient_sync(False)
        compute()
        model.set_requires_gradient_sync(True)
        return unreduced_gradients(model)
    gradients = [torch.zeros_like(parameter) for parameter in trained]
    for parameter, gradient in zip(trained, gradients, strict=True):
        parameter.grad = gradient
    return gradients


def _plain(parameter: nn.Parameter) -> nn.Parameter:
    """A shard by itself. What operations make of sharded tensors, PyTorch finds out on fake ones of
    the whole size, which a ledger would count."""
    own = here(parameter)
    return parameter if own is parameter else nn.Parameter(own)


def _hand_on_gradients(trained: list[nn.Parameter], stepped: list[nn.Parameter]) -> None:
    for parameter, own in zip(trained, stepped, strict=True):
        if own is not parameter and parameter.grad is not None:
            own.grad, parameter.grad = here(parameter.grad), None


def _count_steps_as_host(optimizer: Optimizer, ledger: Ledger) -> None:
    stack = ExitStack()
    optimizer.register_step_pre_hook(lambda *_: stack.enter_context(ledger.counting_as(HOST)))
    optimizer.register_step_post_hook(lambda *_: stack.close())


def _make_optimizer(
    settings: Settings, trained: list[nn.Parameter]
) -> tuple[Optimizer, list[Tensor]]:
    """The optimizer of the settings and its state, after a first step."""
    if settings.optim in LOW_BIT:
        return LowBit(trained), list(low_bit_states(settings.optim, trained))
    on_gpu = settings.gpu != "cpu" and not settings.offload_optimizer
    optimizer = make_optimizer(settings.optim, trained, on_gpu)
    if settings.offload_optimizer:
        optimizer = HostOptimizer(optimizer)
    return optimizer, make_states(optimizer, trained)


def _enter(ledger: Ledger | None, phase: str) -> None:
    if ledger is not None:
        ledger.enter_moment(Moment(phase))


def make_batch(settings: Settings) -> dict[str, Any]:
    """What the collator makes of samples of one document each; the tokens differ, as real ones.

    With `distill` original a row has a second document behind the sample, without labels.
    """
    documents = documents_of(settings)
    shape = settings.batch, sum(documents)
    input_ids = torch.arange(shape[1]).remainder_(97).expand(shape).contiguous()
    batch: dict[str, Any] = {"input_ids": input_ids, "labels": input_ids.clone()}
    batch["labels"][:, 0] = -100
    batch["labels"][:, settings.length :] = -100
    if settings.implementation == LRK:
        positions = torch.cat([torch.arange(length) for length in documents])
        batch["position_ids"] = positions.expand(shape).contiguous()
        ends = torch.tensor([0, *accumulate(documents * settings.batch)], dtype=torch.int32)
        batch |= {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends.clone()}
    return batch


def documents_of(settings: Settings) -> tuple[int, ...]:
    """Lengths of the documents of a row."""
    return (settings.length, *([settings.distill_length] if settings.distill_length else []))


def resolved(config: PretrainedConfig, settings: Settings) -> Settings:
    """With the length of the short context, where that follows from the model's window."""
    if settings.distill != ORIGINAL or settings.distill_length:
        return settings
    length = short_context(settings.length, config.max_position_embeddings)
    return replace(settings, distill_length=length)


# What a teacher is given of a batch.
_READ = ("input_ids", "position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "sequence_split")


def _with_teacher(
    model: nn.Module,
    batch: dict[str, Any],
    settings: Settings,
    teacher: nn.Module | None,
    ledger: Ledger | None,
) -> dict[str, Any]:
    """The batch with its `distillation`, as `lrk.train.distillation` makes it, or as it is."""
    if settings.distill not in (VIEWS, ORIGINAL):
        return batch
    _enter(ledger, TEACHER)
    mask = head = None
    read = batch
    if teacher is not None:
        short = settings.distill_length
        read = make_batch(replace(settings, length=short, distill="none", distill_length=0))
        mask = torch.ones(settings.batch, short, dtype=torch.bool)
        head = TeacherHead.of(teacher)  # type: ignore[arg-type]
    hidden = last_hidden(teacher or model, {name: read[name] for name in _READ if name in read})
    if settings.bf16 and teacher is None:
        hidden = hidden.float()  # as accelerate does with what comes out of autocast
    if ledger is not None:
        ledger.hold([hidden], SAVED)
    return {**batch, "distillation": Distillation(hidden, 1.0, mask, head)}


# Phases in which layers run beside the forward pass.
_OTHERS = (BACKWARD, TEACHER)


@contextmanager
def _recording(model: nn.Module, ledger: Ledger) -> Iterator[None]:
    """Record allocations, and which layer is at work; hooks are undone after the block."""
    base = causal_lm_of(model).model
    layers = list(base.layers)
    handles: list[RemovableHandle] = []

    def entering(moment: Moment) -> Callable[..., None]:
        return lambda *_: ledger.enter_moment(moment)

    def before_layer(index: int, module: nn.Module, args: tuple[Any, ...]) -> None:
        if ledger.moment.phase in _OTHERS:  # computed again, as one of several; or a teacher's
            return
        if index == 0 and args[0].requires_grad:
            args[0].register_hook(entering(Moment(BACKWARD)))
        ledger.enter_moment(Moment(FORWARD, index))

    def after_layer(index: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if ledger.moment.phase in _OTHERS:
            return
        output.register_hook(entering(Moment(BACKWARD, index)))
        if index == len(layers) - 1:
            ledger.enter_moment(Moment(FORWARD))

    def after_base(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if ledger.moment.phase == TEACHER:
            return
        output.last_hidden_state.register_hook(entering(Moment(BACKWARD)))
        ledger.enter_moment(Moment(HEAD))

    for index, layer in enumerate(layers):
        # Bound now: a closure over the loop's variable would see its last value.
        before = lambda *args, index=index: before_layer(index, *args)  # noqa: E731
        after = lambda *args, index=index: after_layer(index, *args)  # noqa: E731
        handles.append(layer.register_forward_pre_hook(before, prepend=True))
        handles.append(layer.register_forward_hook(after))
    for layer in (*layers, *layer_groups(base)):
        if layer.gradient_checkpointing:
            checkpoint = layer._gradient_checkpointing_func
            layer._gradient_checkpointing_func = _marking_recomputation(checkpoint, ledger)
    handles.append(base.register_forward_hook(after_base))
    handles += [
        parameter.register_post_accumulate_grad_hook(lambda p: ledger.hold([p.grad], GRADIENTS))
        for parameter in model.parameters()
        if parameter.requires_grad
    ]
    try:
        with ledger:
            yield
    finally:
        for handle in handles:
            handle.remove()


def _marking_recomputation(checkpoint: Callable[..., Any], ledger: Ledger) -> Callable[..., Any]:
    def marking(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def marked(*inputs: Any) -> Any:
            with ledger.counting_as(RECOMPUTED if ledger.moment.phase == BACKWARD else None):
                return function(*inputs)

        return checkpoint(marked, *args, **kwargs)

    return marking
