"""featvis: are feature visualizations reliable? Activation maximization, natural exemplars, and checks of both.

What there is stands in `__init__.pyi`. Each part is imported when it is first used, so that a command's help need not
wait for torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
