r"""Exact expectations over K independent proposal draws: a sum over all tuples, or quadrature over the noise.

Each method gives latents ``(K, n, *batch)``, the n terms of the expectation beside one another, and their
probabilities ``(n, *batch)``, which carry the proposal's graph where they depend on its parameters.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

__all__ = ["Expectation", "enumerated", "hermite"]

_MOST_TERMS, _MOST_NODES = 65536, 64


class Expectation(NamedTuple):
    """Latents and probabilities of the terms of an expectation over K draws."""

    samples: Tensor
    """``(K, n, *batch, *event)``."""
    probabilities: Tensor
    """``(n, *batch)``, summing to one over n."""


def enumerated(proposal: Distribution, num_samples: int) -> Expectation:
    """All :math:`C^K` tuples of a finite proposal's values.

    Raises:
        ValueError: the proposal cannot be enumerated, or there are more than 65536 tuples.
    """
    if not proposal.has_enumerate_support:
        raise ValueError(
            f"method='enumerate' needs a proposal with finitely many values; got {type(proposal).__name__}. Use "
            "method='hermite' for a scalar Normal, method='sequential' for anything else."
        )
    support = proposal.enumerate_support(expand=True)
    tuples = list(itertools.product(range(len(support)), repeat=_checked(num_samples, len(support))))
    samples = support[torch.tensor(tuples).T]
    return Expectation(samples, proposal.log_prob(samples).sum(0).exp())


def hermite(proposal: Distribution, num_samples: int, share_of_nodes: float = 1.0) -> Expectation:
    r"""Gauss–Hermite quadrature over the standard noise of a scalar Normal latent, ``z = loc + scale * noise``.

    With 64 nodes for K = 2, 40 for K = 3, 16 for K = 4, or a share of them; spectrally accurate for smooth integrands.

    Raises:
        ValueError: not a Normal with one latent number per datum.
    """
    base = proposal.base_dist if isinstance(proposal, Independent) else proposal
    if not isinstance(base, Normal) or proposal.event_shape.numel() != 1:
        raise ValueError(
            f"method='hermite' needs a Normal proposal with one latent number per datum; got {type(proposal).__name__} "
            f"with event shape {tuple(proposal.event_shape)}. Use method='sequential'."
        )
    count = round(share_of_nodes * min(_MOST_NODES, int(_MOST_TERMS ** (1 / num_samples) + 1e-9)))
    nodes, weights = (torch.as_tensor(a, dtype=base.loc.dtype) for a in np.polynomial.hermite_e.hermegauss(count))
    noise = torch.cartesian_prod(*[nodes] * num_samples).reshape(-1, num_samples).T
    probabilities = torch.cartesian_prod(*[weights / weights.sum()] * num_samples).reshape(-1, num_samples).prod(1)
    shape = (num_samples, -1, *[1] * base.loc.ndim)
    samples = base.loc + base.scale * noise.reshape(shape).to(base.loc.device)
    return Expectation(samples, probabilities.reshape(-1, *[1] * len(proposal.batch_shape)).to(base.loc.device))


def _checked(num_samples: int, size: int) -> int:
    if size**num_samples > _MOST_TERMS:
        raise ValueError(
            f"expected at most {_MOST_TERMS} tuples to enumerate; got {size} values ** {num_samples} samples = "
            f"{size**num_samples}. Lower num_samples or the number of values."
        )
    return num_samples
