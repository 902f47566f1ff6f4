"""Labels, and what belongs to them, in the places of the tokens that predict them."""

from torch import Tensor, nn


def to_predictor(of_labels: Tensor, fill: float) -> Tensor:
    """What belongs to a token, (B, S), moved to the token before it, which predicts it."""
    return nn.functional.pad(of_labels, (0, 1), value=fill)[..., 1:]


def to_label(of_predictors: Tensor) -> Tensor:
    """The way back; 0 for the first token, which nothing predicts."""
    return nn.functional.pad(of_predictors[..., :-1], (1, 0))
