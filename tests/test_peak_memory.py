import torch

from lrk.peak_memory import peak_memory_gib


def test_peak_memory_grows_with_an_allocation():
    before = peak_memory_gib(torch.device("cpu"))
    held = torch.ones(2**27)
    assert peak_memory_gib(torch.device("cpu")) >= before > 0
    assert held.sum() > 0
