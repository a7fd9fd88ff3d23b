"""Layer-wise adaptive rate scaling (LARS) as a hook for Chainer, PyTorch and user-made training loops.

Importing this package loads no framework; ``gradient_lars.torch`` holds what belongs to PyTorch.
"""

from gradient_lars.hook import GradientLARS

__all__ = ["GradientLARS", "__version__"]

__version__ = "0.1.0"
