"""`patch()`: code that cannot be changed gets our writers in place of theirs.

    module                            name               what it resolves to while patched
    torch.utils.tensorboard           SummaryWriter      EnvironmentWriter
    torch.utils.tensorboard.writer    SummaryWriter      EnvironmentWriter
    tensorboardX                      SummaryWriter      EnvironmentWriter
    huggingface_hub                   HFSummaryWriter    our HFSummaryWriter

- Nothing is imported for it: a module that is not loaded yet is patched when it is.
- The module gets a class with a property of that name, so whoever imports the name gets ours, loaded on first use;
  what the module itself calls so, and what somebody has imported before, stays what it was.
- `tensorboardX.writer` is left alone: ours are made of it.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

NAMES = {
    "torch.utils.tensorboard": "SummaryWriter",
    "tensorboardX": "SummaryWriter",
    "huggingface_hub": "HFSummaryWriter",
}
ALSO_IN = {"torch.utils.tensorboard": ["torch.utils.tensorboard.writer"]}  # loaded with it
_undo: list[Callable[[], None]] = []


def patch() -> None:
    """Let `torch.utils.tensorboard.SummaryWriter`, tensorboardX's and `huggingface_hub.HFSummaryWriter` be ours.

    The destination of the first two is in the environment: HF_MPWRITER_REPO_ID, _REPO_TYPE, _REPO_PRIVATE; without it
    they are local writers. Call it before the names are imported. Any number of calls is as one.
    """
    if not _undo:
        finder = _Finder()
        sys.meta_path.insert(0, finder)
        _undo.append(lambda: sys.meta_path.remove(finder))
        for name in NAMES:
            if name in sys.modules:
                _replace(name)


def unpatch() -> None:
    """Undo `patch()`: the names resolve to what they did before; writers that were made stay as they are."""
    while _undo:
        _undo.pop()()


def _ours(name: str) -> Any:
    if name == "HFSummaryWriter":
        from hf_mpwriter.writer.hf_summary_writer import HFSummaryWriter

        return HFSummaryWriter
    from hf_mpwriter.integrations.from_environment import EnvironmentWriter

    return EnvironmentWriter


def _replace(package: str) -> None:
    for module in [package, *ALSO_IN.get(package, [])]:
        if module in sys.modules:
            _put_in_place(sys.modules[module], NAMES[package])


def _put_in_place(module: ModuleType, name: str) -> None:
    before = type(module)

    def restore() -> None:
        module.__class__ = before

    def assign(_: ModuleType, value: Any) -> None:
        restore()  # somebody else replaces it: theirs is what is wanted
        setattr(module, name, value)

    def travel(_: ModuleType) -> Any:
        return importlib.import_module, (module.__name__,)  # picklers know modules by their exact class

    namespace = {name: property(lambda _: _ours(name), assign), "__reduce__": travel}
    module.__class__ = type(before.__name__, (before,), namespace)
    _undo.append(restore)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds what the other finders find, and patches it when it has been loaded."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec of a module that is to be patched."""
        if name not in NAMES:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            _patch_when_loaded(spec.loader)
        return spec


def _patch_when_loaded(loader: Any) -> None:
    load = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        load(module)
        if _undo and module.__name__ in NAMES:  # a loader may load others as well: that of a zip file does
            _replace(module.__name__)

    loader.exec_module = exec_module
