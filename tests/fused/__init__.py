"""Tests of the fused path: the kernels, their tables, and what is carried from step to step."""
