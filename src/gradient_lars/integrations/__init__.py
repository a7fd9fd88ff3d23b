"""LARS inside other people's training loops: one module for each framework, which alone imports it.

``gradient_lars.integrations.lightning``, ``.transformers`` and ``.timm``. What needs no code of its own (Accelerate,
AMP, ``torch.compile``, Flax, Equinox, Chainer) is described in docs/integrations.md.
"""
