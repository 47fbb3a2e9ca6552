"""A Pyro model and its guide as the pair that iwbounds works on: a log-joint and a proposal."""

from iwbounds.adapters.pyro.convert import from_pyro

__all__ = ["from_pyro"]
