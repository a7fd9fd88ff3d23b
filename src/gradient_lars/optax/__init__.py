"""LARS in JAX: optax transformations over any pytree of parameters."""

from gradient_lars.optax._optimizer import lars
from gradient_lars.optax._rescale import ScaleByGradientLARSState
from gradient_lars.optax._transform import scale_by_gradient_lars

__all__ = ["ScaleByGradientLARSState", "lars", "scale_by_gradient_lars"]
