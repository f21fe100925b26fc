"""Import torchvision where its compiled operators do not load beside a CPU build of torch.

`import torchvision` registers fake kernels for `nms` and `qnms` and fails with "operator
torchvision::nms does not exist" when its extension was built for another torch. Nothing in
featvis calls these operators; declaring the two schemas is enough for models, transforms and data
sets. Import torchvision through this module only, so that the declaration always comes first.
"""

from __future__ import annotations

import sys
from types import ModuleType

import torch

_declared: torch.library.Library | None = None


def _import_torchvision() -> ModuleType:
    global _declared
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        # The failed attempt leaves half-imported modules behind.
        for name in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        # The library object must stay alive, or the declarations go with it.
        _declared = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            _declared.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    return torchvision


torchvision = _import_torchvision()
