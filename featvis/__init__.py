"""featvis: are feature visualizations reliable? Activation maximization, natural exemplars, and checks of both.

What there is stands in `__init__.pyi`. Each part is imported when it is first used, so that a command's help need not
wait for torch.
"""

import sys
from types import ModuleType
from typing import Any

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

# Functions that live in a module of their own name, which would take the name as soon as somebody imports it.
_FUNCTIONS = ("atlas", "audit", "exemplars", "linearity", "notice", "structured")


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _FUNCTIONS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
