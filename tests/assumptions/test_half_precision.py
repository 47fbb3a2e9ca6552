"""No coefficient underflows in the user's float16 graph.

Root cause: where b/a may be infinite, a was raised to 1e-18 b so that one gate could serve both, and 1e-18 is 0 in
float16. Such pairs now have a backward each.
"""

import pytest
import torch
from torch.distributions import Independent, Normal

import iwbounds as iw

B, D, K = 6, 3, 8
CASES = {
    "PIWAE": (iw.IWAE(), None, iw.MIWAE(4)),
    "PIWAE of ELBO": (iw.IWAE(), iw.DReG(), iw.ELBO()),
    "DReGWake": (iw.IWAE(), iw.DReGWake(), None),
    "jackknife": (iw.Jackknife(1), iw.DReG(), None),
    "tvo": (iw.TVO(3), iw.DReG(), None),
    "eubo": (iw.EUBO(), iw.DReG(), None),
    "iwae": (iw.IWAE(), iw.DReG(), None),
    "cubo": (iw.CUBO(2), iw.DReG(), None),
    "renyi, negative": (iw.Renyi(-1.0), iw.DReG(), None),
    "u-statistic": (iw.UStatistic(4), iw.DReG(), None),
    "DReGWake of ELBO": (iw.IWAE(), iw.DReGWake(), iw.ELBO()),
    "STL of ELBO": (iw.IWAE(), iw.STL(), iw.ELBO()),
    "VIMCO of MIWAE": (iw.IWAE(), iw.VIMCO(), iw.MIWAE(4)),
}


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("callables", [False, True], ids=["distribution", "callables"])
@pytest.mark.parametrize(("bound", "gradient", "proposal_bound"), CASES.values(), ids=CASES)
def test_autocast_gives_the_gradient_up_to_its_rounding(bound, gradient, proposal_bound, callables, half):
    """Within 5 % (bfloat16, 8 bits) or 1 % of the largest component; an underflow was off by factors."""
    generator = torch.Generator().manual_seed(0)
    decoder = torch.nn.Linear(D, 16)
    with torch.no_grad():
        decoder.weight.copy_(torch.randn(16, D, generator=generator))
    x, noise = torch.randn(B, 16, generator=generator), torch.randn(K, B, D, generator=generator)

    def gradient_of(autocast):
        loc = torch.zeros(B, D, requires_grad=True)
        q = Independent(Normal(loc, 0.7), 1)
        proposal = iw.Proposal(q.rsample, q.log_prob) if callables else q

        def log_joint(z):
            with torch.autocast("cpu", dtype=half, enabled=autocast):
                mean = decoder(z)
            return Normal(mean.float(), 1.0).log_prob(x).sum(-1) + Normal(0.0, 1.0).log_prob(z).sum(-1)

        value = iw.estimate(
            log_joint, proposal, bound, gradient, proposal_bound=proposal_bound, samples=loc + 0.7 * noise
        ).value
        return torch.autograd.grad(value.mean(), loc)[0]

    exact = gradient_of(False)
    error = (gradient_of(True) - exact).abs().max() / exact.abs().max()
    assert error < (0.01 if half is torch.float16 else 0.05)
