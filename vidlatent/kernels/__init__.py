"""Numeric kernels: each beside its plain reference, with an ``implementation=`` switch."""
