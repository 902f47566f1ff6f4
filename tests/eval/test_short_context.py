"""What lm-eval is given, by a stand-in for it: the package downloads its data sets."""

import sys
from types import ModuleType

import pytest

from lrk.eval.short_context import require_lm_eval, run_lm_eval


def test_what_lm_eval_is_given(model, tokenizer, monkeypatch):
    calls = []
    package, huggingface = ModuleType("lm_eval"), ModuleType("lm_eval.models.huggingface")

    def simple_evaluate(**options):
        calls.append(options)
        results = {"arc_easy": {"acc,none": 0.5, "alias": "arc_easy"}}
        return {"results": results, "versions": {"arc_easy": 1.0}, "n-samples": {}, "config": {}}

    package.simple_evaluate = simple_evaluate
    huggingface.HFLM = lambda **options: options
    tasks = ModuleType("lm_eval.tasks")
    tasks.TaskManager = lambda include_path: include_path
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", tasks)
    monkeypatch.setitem(sys.modules, "lm_eval", package)
    monkeypatch.setitem(sys.modules, "lm_eval.models", ModuleType("lm_eval.models"))
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", huggingface)
    found = run_lm_eval(model, tokenizer, "arc_easy", 4, 7, False, "folder")
    assert found["results"]["arc_easy"]["acc,none"] == 0.5
    (call,) = calls
    assert call["tasks"] == ["arc_easy"]
    assert call["model"] == {"pretrained": model, "tokenizer": tokenizer, "batch_size": 4}
    assert call["fewshot_random_seed"] == 7
    assert call["task_manager"] == "folder"


def test_without_lm_eval_it_says_so(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install lm-eval"):
        require_lm_eval()
