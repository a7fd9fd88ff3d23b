"""Tests of ``gradient_lars.optax``."""
