"""Tests of the hook without any framework, or with stand-ins for them."""
