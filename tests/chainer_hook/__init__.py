"""Tests that run the real Chainer."""
