"""Tests of the LARS optimizer and of its parameter groups."""
