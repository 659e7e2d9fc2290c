"""`patch()`: in code that cannot be changed, the names of other libraries' writers resolve to ours.

    module                            name                 what it resolves to while patched
    torch.utils.tensorboard           SummaryWriter        EnvironmentWriter
    torch.utils.tensorboard.writer    SummaryWriter        EnvironmentWriter
    tensorboardX                      SummaryWriter        EnvironmentWriter
    tensorboardX                      GlobalSummaryWriter  GlobalEnvironmentWriter
    huggingface_hub                   HFSummaryWriter      our HFSummaryWriter

The module object gets a class with a property of each name. An import of the name runs the property, which loads our
class.

Invariants:
- Nothing is imported early: a module that is not loaded yet is patched when it is loaded.
- The library's own code, and names imported before, keep the original class.
- `tensorboardX.writer` is not patched, because our classes are subclasses of its class.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from hf_mpwriter.base import arguments

NAMES = {
    "torch.utils.tensorboard": ["SummaryWriter"],
    "tensorboardX": ["SummaryWriter", "GlobalSummaryWriter"],
    "huggingface_hub": ["HFSummaryWriter"],
}
ALSO_IN = {"torch.utils.tensorboard": ["torch.utils.tensorboard.writer"]}  # loaded with it
_undo: list[Callable[[], None]] = []


def patch() -> None:
    """Replace the writers of `torch.utils.tensorboard` and tensorboardX, and `huggingface_hub.HFSummaryWriter`.

    Call it before the names are imported. Further calls have no effect. The environment names the destination of the
    writers of the first two: HF_MPWRITER_REPO_ID and HF_MPWRITER_REPO_PRIVATE. Without a repository they stay
    local. Steps with a fraction are cut off, as torch does.
    """
    if not _undo:
        finder = _Finder()
        sys.meta_path.insert(0, finder)
        _undo.append(lambda: setattr(arguments, "fractions_are_cut", False))
        arguments.fractions_are_cut = True
        _undo.append(lambda: sys.meta_path.remove(finder))
        for name in NAMES:
            if name in sys.modules:
                _replace(name)


def unpatch() -> None:
    """Undo `patch()`: the names resolve to the original classes again. Writers that exist stay as they are."""
    while _undo:
        _undo.pop()()


def _ours(name: str) -> Any:
    if name == "HFSummaryWriter":
        from hf_mpwriter.writer.hf_summary_writer import HFSummaryWriter

        return HFSummaryWriter
    if name == "GlobalSummaryWriter":
        from hf_mpwriter.integrations.shared import GlobalEnvironmentWriter

        return GlobalEnvironmentWriter
    from hf_mpwriter.integrations.shared import EnvironmentWriter

    return EnvironmentWriter


def _replace(package: str) -> None:
    for module in [package, *ALSO_IN.get(package, [])]:
        if module in sys.modules:
            _replace_in(sys.modules[module], NAMES[package])


def _replace_in(module: ModuleType, names: list[str]) -> None:
    before = type(module)

    def reduce(_: ModuleType) -> Any:
        return importlib.import_module, (module.__name__,)  # picklers recognise a module by its exact class only

    kind = type(before.__name__, (before,), {"__reduce__": reduce})
    for name in names:
        if name == names[0] or name in vars(module):  # an older version may lack the others
            setattr(kind, name, _resolved(kind, name))
    module.__class__ = kind

    def restore() -> None:
        module.__class__ = before

    _undo.append(restore)


def _resolved(kind: type[ModuleType], name: str) -> property:
    """A property of a module that resolves a name to ours until another tool replaces it, which has the last word."""

    def assign(module: ModuleType, value: Any) -> None:
        delattr(kind, name)
        setattr(module, name, value)

    return property(lambda _: _ours(name), assign)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds what the other finders find, and patches it once it is loaded; so it has to be the first of them."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of a module that must be patched, None for any other."""
        if sys.meta_path[0] is not self:  # that of a tool which was imported since
            sys.meta_path[:] = [self, *(finder for finder in sys.meta_path if finder is not self)]
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
        if _undo and module.__name__ in NAMES:  # a loader may load other modules too, as that of a zip file does
            _replace(module.__name__)

    loader.exec_module = exec_module
