"""Sharded and distributed: several processes on the CPU, over gloo."""
