"""RoPE in a transformers model: the embedding hands out positions, the attention rotates by them.

transformers computes tables of cosines and sines once per forward pass, rounded to the dtype of the
activations, and each attention calls `apply_rotary_pos_emb` with them. Here the embedding hands out
raw positions in the place of the cosines, and frequencies in that of the sines; and the attention
is the stock one but for that function, which is lrk's, and computes every angle exactly. So what
an attention does beside it (norms of queries and keys, one projection for all, scales, sinks,
layers that do not rotate) stays its own.
"""

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any, ClassVar, NamedTuple

import torch
import transformers
from torch import Tensor
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.utils import logging

from lrk.frequencies import (
    DynamicFrequencies,
    LongRopeFrequencies,
    frequencies_by_length,
    rope_frequencies,
    rope_layer_types,
    rope_parameters,
)
from lrk.hf.cache_name import under_its_name
from lrk.hf.sequence_split import whole_positions
from lrk.hf.signatures import check_signature
from lrk.hf.stock_forward import global_of, rebound
from lrk.kernels.rope import phase_increments, rope

ROTATION = "apply_rotary_pos_emb"
_ARGUMENTS = ("q", "k", "cos", "sin")


class Frequencies(NamedTuple):
    """What `rope` is given beside positions."""

    increments: Tensor
    """(R/2,) int64 phase increments."""
    attention_scaling: float


PositionEmbeddings = tuple[Tensor, Frequencies]
"""(B or 1, S) positions, where stock has cosines, and frequencies, where it has sines."""

_logger = logging.get_logger(__name__)


class LrkRotaryEmbedding:
    """Mixed in before a stock rotary embedding, which has this attribute."""

    config: PretrainedConfig

    _lrk_increments: dict[str | None, Tensor] | None = None
    _lrk_attention_scaling: dict[str | None, float]
    _lrk_by_length: dict[str | None, DynamicFrequencies | LongRopeFrequencies | None]

    @classmethod
    def over(cls, stock: type[Any]) -> dict[str, Any]:
        """See `lrk.hf.mixed.mixed`."""
        check_signature(stock, cls, may_lack=("layer_type",))
        return {}

    def forward(
        self, x: Tensor, position_ids: Tensor, layer_type: str | None = None
    ) -> PositionEmbeddings:
        """The last arguments of `rope`, for the layers of a type.

        Args:
            layer_type: one of `rope_layer_types`.
        """
        if self._lrk_increments is None or self._lrk_increments[layer_type].device != x.device:
            self._make_increments(x.device)
        assert self._lrk_increments is not None
        increments = self._lrk_increments[layer_type]
        by_length = self._lrk_by_length[layer_type]
        if by_length is not None:
            length = _text_length(whole_positions(position_ids), by_length)
            increments = phase_increments(by_length.at(length))
        return position_ids, Frequencies(increments, self._lrk_attention_scaling[layer_type])

    def prepare(self) -> None:
        """Make the increments now if the module has a device: a traced forward then finds them."""
        device = next(self.buffers()).device  # type: ignore[attr-defined]
        if device.type != "meta":
            self._make_increments(device)

    def _make_increments(self, device: torch.device) -> None:
        """From the config, in float64. Integers, so no cast of the model harms them.

        They are not registered as a buffer: loading into a model that was made on the meta device
        would overwrite it. The backward pass keeps them, so they must outlive inference mode.
        """
        kinds = rope_layer_types(self.config)
        with torch.inference_mode(False):
            found = {kind: rope_frequencies(self.config, kind) for kind in kinds}
            self._lrk_attention_scaling = {kind: found[kind].attention_scaling for kind in kinds}
            self._lrk_increments = {
                kind: phase_increments(found[kind].inv_freq.to(device)) for kind in kinds
            }
            self._lrk_by_length = {
                kind: frequencies_by_length(self.config, device, kind) for kind in kinds
            }


def _text_length(
    position_ids: Tensor, by_length: DynamicFrequencies | LongRopeFrequencies
) -> Tensor:
    """() tokens of the longest text of a batch, counted as transformers does: the last position.

    Where positions skip, the last one is drawn at random, and a text stands for a longer one.

    Args:
        position_ids: (B, S). Those of padding may fall back, and so do those of another document.
    """
    length = position_ids.max() + 1
    before = position_ids.cummax(dim=1).values
    skips = (position_ids[:, 1:] - before[:, :-1] > 1).any()
    return torch.where(skips, by_length.with_skips(length), length)


def check_frequencies(rotary: Any) -> None:
    """Raise `ValueError` unless lrk's frequencies are those of a stock rotary embedding's config.

    Both are computed anew: those that the module holds may have been rounded, or be on no device.
    A type that asks for a length is compared within the window.
    """
    for layer_type in rope_layer_types(rotary.config):
        _check_frequencies(rotary, layer_type)


def _check_frequencies(rotary: Any, layer_type: str | None) -> None:
    config = rotary.config
    parameters = rope_parameters(config, layer_type)
    kind = parameters.get("rope_type", "default")
    of_layers = {} if layer_type is None else {"layer_type": layer_type}
    with torch.device("cpu"):  # models are also made on the meta device
        ours, ours_scaling = rope_frequencies(config, layer_type)
        by_length = frequencies_by_length(config, layer_type=layer_type)
        if by_length is not None:
            ours = by_length.at(torch.tensor(1))
        if kind == "default":
            theirs, scaling = rotary.compute_default_rope_parameters(config, **of_layers)
        else:
            theirs, scaling = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), **of_layers)
    if by_length is not None:
        _logger.warning_once(
            f"rope_type is {kind!r}, whose frequencies depend on the length of the text: where "
            f"positions skip, lrk takes those of {by_length.longest} tokens, and not those of "
            "whatever position comes last in the batch"
        )
    theirs = theirs.to(ours.dtype)
    same = theirs.shape == ours.shape and torch.allclose(theirs, ours, rtol=1e-4, atol=0)
    if not same or abs(scaling - ours_scaling) > 1e-4 * abs(scaling):
        raise ValueError(
            f"rope_parameters are {parameters}, of which lrk makes other frequencies "
            f"than transformers {transformers.__version__}: use lrk.patch(model, rope=False)"
        )


class LrkAttention:
    """Mixed in before a stock attention: its forward, which rotates by `rope`."""

    _lrk_forward: ClassVar[FunctionType]

    @classmethod
    def over(cls, stock: type[Any]) -> dict[str, Any]:
        """What the class has that is mixed before a stock attention; see `lrk.hf.mixed.mixed`.

        Raises:
            ValueError: if it does not call transformers' rotation, or that is neither of two kinds.
        """
        turn = _turn_pairs if is_interleaved(stock) else _turn_halves
        return {"_lrk_forward": rebound(stock, **{ROTATION: turn})}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the stock forward, with `rope` on the raw positions."""
        return type(self)._lrk_forward(self, *args, **under_its_name(kwargs))


def _turn_halves(
    query: Tensor, key: Tensor, cos: Tensor, sin: Frequencies, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """`apply_rotary_pos_emb`, of positions and frequencies; dimension j turns with j + R/2."""
    _check_heads(unsqueeze_dim)
    return rope(query, key, cos, *sin)


def _turn_pairs(
    query: Tensor, key: Tensor, cos: Tensor, sin: Frequencies, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """Likewise, but dimension 2 j turns with 2 j + 1."""
    _check_heads(unsqueeze_dim)
    return rope(query, key, cos, *sin, interleaved=True)


def _check_heads(unsqueeze_dim: int) -> None:
    if unsqueeze_dim != 1:
        raise ValueError(
            f"unsqueeze_dim is {unsqueeze_dim}, for heads in another place than lrk's RoPE has "
            "them: use lrk.patch(model, rope=False)"
        )


def is_interleaved(stock: type[Any]) -> bool:
    """Whether a stock attention turns dimension 2 j with 2 j + 1, and not j with j + R/2.

    Told by a quarter turn of (1, 2, 3, 4). Cosines and sines come as R numbers, or as R/2.
    """
    rotation = global_of(stock, ROTATION)
    if not _takes_as_known(rotation):
        raise _unlike(stock, f"takes other arguments than {', '.join(_ARGUMENTS)}, unsqueeze_dim")
    x = torch.arange(1.0, 5.0, device="cpu").view(1, 1, 1, 4)
    for width in (4, 2):
        zeros, ones = (torch.full((1, 1, width), value, device="cpu") for value in (0.0, 1.0))
        try:
            turned = rotation(x, x, zeros, ones)[0].flatten().tolist()
        except RuntimeError:  # of shapes that do not go together
            continue
        if turned == [-2, 1, -4, 3]:
            return True
        if turned == [-3, -4, 1, 2]:
            return False
    raise _unlike(stock, "turns neither dimension j with j + R/2 nor 2 j with 2 j + 1")


def _takes_as_known(rotation: Callable[..., Any]) -> bool:
    parameters = list(inspect.signature(rotation).parameters.values())
    by_place = [each.name for each in parameters[:4] if each.kind is each.POSITIONAL_OR_KEYWORD]
    others = {each.name: each.default is not each.empty for each in parameters[4:]}
    return tuple(by_place) == _ARGUMENTS and "unsqueeze_dim" in others and all(others.values())


def _unlike(stock: type[Any], what: str) -> ValueError:
    return ValueError(
        f"{ROTATION} of {stock.__name__} in transformers {transformers.__version__} {what}: use "
        "lrk.patch(model, rope=False)"
    )
