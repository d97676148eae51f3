"""CONTRIBUTING.md's chapter on adding a method, done as it says."""

import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from command import finetune_options

import minift
from minift import methods

CHAPTER = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text().split("# Adding a method")[1]
[CODE] = re.findall(r"```python\n(.*?)```", CHAPTER, re.DOTALL)


@pytest.fixture
def norms(monkeypatch):
    """The chapter's file as a module, and the chapter's line in the table."""
    assert "`minift/methods/norms.py`" in CHAPTER and "`Norms,` in the table `METHODS`" in CHAPTER
    module = types.ModuleType("minift.methods.norms")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where a dataclass looks up its module
    exec(compile(CODE, "minift/methods/norms.py", "exec"), vars(module))
    monkeypatch.setitem(methods.METHODS, module.Norms.name, module.Norms)


def test_the_chapter_s_method_works(tiny, tmp_path, run, norms):
    [command] = re.findall(r"`minift finetune (--method norms [^`]*)`", CHAPTER)
    options = finetune_options(tiny, tmp_path / "out", dev=None)
    assert run(*options, *command.split())[0] == 0
    before, after = minift.load(tiny / "model"), minift.load(tmp_path / "out")
    trained = {name for name, each in after.named_parameters() if each.requires_grad}
    assert {name for name in trained if "classifier" not in name} == {
        name for name, _ in after.named_parameters() if name.endswith("LayerNorm.weight")
    }
    old = dict(before.named_parameters())
    for name, parameter in after.named_parameters():
        assert (name in trained) != np.array_equal(parameter.data, old[name].data), name

    model = minift.load(tiny / "model")
    minift.apply_method(model, "norms")
    assert model.bert.embeddings.LayerNorm.bias.requires_grad
