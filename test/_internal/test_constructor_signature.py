from __future__ import annotations

import importlib
import inspect
import pkgutil
import runpy
from enum import Enum
from pathlib import Path

import pytest
from torch import nn

import torchrl_vla
from torchrl_vla.envs import TabletopEnv

ROOT = Path(__file__).parents[2]
PACKAGES = [
    importlib.import_module(f"torchrl_vla.{module.name}")
    for module in pkgutil.iter_modules(torchrl_vla.__path__)
    if not module.name.startswith("_")
]
CLASSES = {
    f"{package.__name__}.{name}": value
    for package in PACKAGES
    for name in getattr(package, "__all__", ())
    if inspect.isclass(value := getattr(package, name))
    # Exceptions, enums and protocols are not constructed; others have nn.Module's own.
    and not issubclass(value, (BaseException, Enum))
    and not getattr(value, "_is_protocol", False)
    and value.__init__ not in (nn.Module.__init__, object.__init__)
}


def test_every_subpackage_shows_classes():
    shown = {name.split(".")[1] for name in CLASSES}
    assert {"data", "envs", "execution", "objectives", "policies", "rollout"} < shown
    assert len(CLASSES) > 100


@pytest.mark.parametrize("name", CLASSES)
def test_a_public_class_shows_the_parameters_that_it_takes(name):
    shown = list(inspect.signature(CLASSES[name]).parameters.values())
    taken = list(inspect.signature(CLASSES[name].__init__).parameters.values())[1:]
    assert shown == taken
    assert [p for p in shown if p.kind is p.VAR_POSITIONAL] == []


def test_the_api_pages_show_them_too():
    pytest.importorskip("sphinx_gallery", reason="the documentation is not built here")
    page = runpy.run_path(str(ROOT / "docs" / "conf.py"))["show_constructor"]
    for name, cls in CLASSES.items():
        hidden = "(*args, **kwargs)"  # what Sphinx finds where TorchRL hides it
        shown, _ = page(None, "class", name, cls, None, hidden, None)
        taken = list(inspect.signature(cls.__init__).parameters.values())[1:]
        bare = [p.replace(annotation=p.empty) for p in taken]
        assert shown == str(inspect.Signature(bare))


def test_a_subclass_shows_its_own_parameters():
    class Kitchen(TabletopEnv):
        def __init__(self, drawers: int = 2) -> None:
            super().__init__(1)

    assert list(inspect.signature(Kitchen).parameters) == ["drawers"]


def test_an_object_shows_the_signature_of_its_call():
    env = TabletopEnv(1)
    call = inspect.signature(type(env).__call__)
    assert list(inspect.signature(env).parameters) == list(call.parameters)[1:]
