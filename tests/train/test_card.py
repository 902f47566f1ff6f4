"""Which card a recipe is for."""

from types import SimpleNamespace

import pytest
import torch

from lrk.plan.gpus import GPUS
from lrk.train.card import card_of


def test_by_name():
    assert card_of("l40s") == ("l40s", GPUS["l40s"].gib)
    with pytest.raises(ValueError, match=r"gpu 'h10' is unknown; .*did you mean 'h100'"):
        card_of("h10")


@pytest.mark.parametrize(
    ("device", "gib", "name"),
    [
        ("NVIDIA H100 80GB HBM3", 79.1, "h100"),
        ("NVIDIA H200", 139.8, "h200"),
        ("NVIDIA A100-SXM4-80GB", 79.2, "a100"),
        ("NVIDIA A100-PCIE-40GB", 39.4, "a100-40gb"),
        ("NVIDIA GeForce RTX 4090", 23.5, "rtx4090"),
    ],
)
def test_by_what_is_there(monkeypatch, device, gib, name):
    found = SimpleNamespace(name=device, total_memory=int(gib * 2**30))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: found)
    card = card_of(None)
    assert card.name == name
    assert card.gib == pytest.approx(gib)


def test_none_that_is_known(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"gpu is missing, and this machine has none; .* h100, "):
        card_of(None)
    found = SimpleNamespace(name="Quadro", total_memory=2**33)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: found)
    with pytest.raises(ValueError, match="machine's Quadro is not known"):
        card_of(None)
