"""Rubin's eight schools from Pyro: an automatic guide, the evidence from below, and, with draws of NUTS, from above.

Exact: −31.3113. In --quick there is no NUTS, and the Gaussian guide is what k̂ says it is: good to a tenth of a nat.
"""

import sys

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoMultivariateNormal

import iwbounds as iw
from iwbounds.adapters.pyro import from_pyro

Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def model():
    mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))  # not centred: a posterior that a Gaussian fits better
        pyro.sample("y", dist.Normal(mu + tau * eta, SIGMA), obs=Y)


def main(quick=False):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = AutoMultivariateNormal(model, init_scale=0.5)
    log_joint, q = from_pyro(model, guide)
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps := 300 if quick else 3000)
    for _ in range(steps):
        optimizer.zero_grad()
        (-iw.estimate(log_joint, q, iw.ELBO(), num_samples=16).value).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        estimate = iw.estimate(log_joint, q, num_samples=20_000)
    print(f"lower {estimate.value.item():.3f}, ESS {estimate.ess.item():.0f}, k̂ {estimate.pareto_k.item():.2f}")
    assert abs(estimate.value.item() + 31.3113) < 0.1
    if quick:
        return
    mcmc = pyro.infer.MCMC(pyro.infer.NUTS(model), num_samples=1000, warmup_steps=500, num_chains=1)
    mcmc.run()
    print(iw.sandwich(log_joint, q, mcmc.get_samples(), num_samples=20_000, chains=1))


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
