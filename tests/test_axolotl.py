"""The plugin of axolotl, on a stand-in for axolotl."""

import importlib
import sys
from types import SimpleNamespace

import pytest
import torch

from lrk.hf.canary import tiny_config, tiny_model
from tests.stand_in_axolotl import modules

PACKS = SimpleNamespace(sample_packing=True, eval_sample_packing=False)


@pytest.fixture
def plugin(monkeypatch):
    for name, module in modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "lrk.axolotl", raising=False)
    module = importlib.import_module("lrk.axolotl")
    yield module.LrkPlugin()
    sys.modules.pop("lrk.axolotl", None)


def test_the_model_is_patched(plugin):
    model = tiny_model(tiny_config("llama"))
    plugin.post_model_load(PACKS, model)
    assert model.config._attn_implementation == "lrk"


def test_the_collator_is_axolotls_where_nothing_is_packed(plugin):
    assert plugin.get_collator_cls_and_kwargs(PACKS, is_eval=True) is None
    assert plugin.get_collator_cls_and_kwargs(PACKS) is not None


def test_packed_documents_are_apart(plugin):
    model = tiny_model(tiny_config("llama")).eval()
    rows = [[[5, 6, 7, 8, 9], [10, 11, 12]], [[13, 14, 15, 16]]]
    kind, arguments = plugin.get_collator_cls_and_kwargs(PACKS)
    batch = kind(**arguments)(rows)
    assert batch["cu_seq_lens_q"].tolist() == [0, 5, 8, 12, 16]
    documents = [torch.tensor([document]) for row in rows for document in row]
    with torch.no_grad():
        losses = [model(each, labels=each).loss * (each.shape[1] - 1) for each in documents]
        plugin.post_model_load(PACKS, model)
        packed = model(**batch, use_cache=False).loss
    torch.testing.assert_close(packed, sum(losses) / (4 + 2 + 3))
