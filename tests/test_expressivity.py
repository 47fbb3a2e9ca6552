"""What latents are for: the short form asserts its ending; the parts it stands on are exact."""

from __future__ import annotations

import importlib
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import iwbounds as iw

EXAMPLES = Path(__file__).parents[1] / "examples"
pytest.importorskip("sklearn", reason="the example reads scikit-learn's digits: pip install 'iwbounds[examples]'")
pytest.importorskip("matplotlib", reason="the example draws a figure: pip install 'iwbounds[examples]'")
pytest.importorskip("tqdm", reason="the example shows progress: pip install 'iwbounds[examples]'")


@pytest.fixture
def expressivity(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        yield importlib.import_module("expressivity")
    torch.set_num_threads(threads)


@pytest.fixture
def images(expressivity):
    """Four random pixels: everything about them can be enumerated."""
    common = importlib.import_module("_common")
    return common.Images(torch.rand(6, 4), torch.rand(5, 4).round())


def every_image(pixels: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=pixels)))


@pytest.mark.slow
def test_short_form_ends_as_it_says(expressivity, tmp_path, capsys):
    """Rates fall with β, the bound is below the exact NLL, and one decoder alone leaves its latent unused."""
    figure = tmp_path / "figure.png"
    sizes = ["--epochs", "8", "--pairs", "60", "--auxiliary-samples", "8", "--least", "2"]
    expressivity.main([*sizes, "--out", str(figure)])
    printed = capsys.readouterr().out
    rows = {line.split("  ")[0]: line for line in printed.splitlines()}
    shares = {name: float(re.split(r"\s{2,}", rows[name])[2].split()[0]) for name in ("factorised", "autoregressive")}
    assert shares["factorised"] > 2 > 1 > shares["autoregressive"]
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert figure.stat().st_size < 300_000


def test_the_autoregressive_decoder_is_a_distribution_over_images(expressivity, images):
    """Probabilities of all sixteen images sum to 1 for every z: no pixel sees itself or a later one."""
    torch.manual_seed(0)
    decoder = expressivity.AutoregressiveDecoder(images, latent=2, channels=3, layers=2)
    z = torch.randn(3, 1, 2)
    log_prob = expressivity.Autoregressive(decoder, z).log_prob(every_image(4))
    assert log_prob.shape == (3, 16)
    assert torch.allclose(log_prob.logsumexp(1), torch.zeros(3), atol=1e-5)
    # and it depends on the pixels' order and on z
    assert (log_prob.std(0) > 1e-4).all()


def test_autoregressive_samples_have_the_probabilities_of_its_density(expressivity, images):
    """20 000 draws of 16 outcomes; each share within five standard errors: a false alarm once in 100 000."""
    torch.manual_seed(0)
    decoder = expressivity.AutoregressiveDecoder(images, latent=2, channels=3, layers=2)
    p = expressivity.Autoregressive(decoder, torch.randn(2))
    drawn = p.sample((20_000,))
    probability = p.log_prob(every_image(4)).exp()
    numbers = (drawn @ torch.tensor([8.0, 4.0, 2.0, 1.0])).long()
    share = numbers.bincount(minlength=16) / len(drawn)
    assert ((share - probability).abs() < 5 * (probability * (1 - probability) / len(drawn)).sqrt()).all()


def test_exact_log_likelihood_of_codes_is_that_of_a_distribution_and_above_every_bound(expressivity, images):
    torch.manual_seed(0)
    model = expressivity.Codes(images, hidden=5, positions=2, choices=3)
    every = every_image(4)
    exact = model.exact_log_likelihood(every)
    assert exact.logsumexp(0).item() == pytest.approx(0.0, abs=1e-5)
    # The expected bound with one sample, over all nine codes: below, and equal to exact − KL.
    log_joint, q = model(every)
    codes = torch.tensor(list(itertools.product(range(3), repeat=2)))[:, None].expand(9, 16, 2)
    log_q = q.log_prob(codes)
    elbo = (log_q.exp() * (log_joint(codes) - log_q)).sum(0)
    posterior = log_joint(codes) - exact
    divergence = (log_q.exp() * (log_q - posterior)).sum(0)
    assert (elbo < exact).all()
    assert torch.allclose(exact - elbo, divergence, atol=1e-5)


def test_beta_divides_the_likelihood_and_one_is_the_plain_autoencoder(expressivity, images):
    torch.manual_seed(0)
    model = expressivity.BetaVAE(images, 5, 2, beta=4.0)
    z = torch.randn(3, 5, 2)
    tempered = model(images.test)[0](z)
    model.beta = 1.0
    plain = model(images.test)[0](z)
    assert torch.allclose(plain, super(expressivity.BetaVAE, model).forward(images.test)[0](z))
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    assert torch.allclose(4 * (tempered - prior), plain - prior, atol=1e-5)


def test_rate_and_distortion_sum_to_the_elbo(expressivity, images):
    torch.manual_seed(0)
    model = expressivity.BetaVAE(images, 5, 2, beta=1.0)
    rates = [sum(model.rate_and_distortion(images.test)) for _ in range(50)]
    elbo = iw.estimate(*model(images.test), iw.ELBO(), num_samples=4000).value.mean().item()
    # A distortion of 20 × 5 draws, fifty times: standard error below 0.01.
    assert sum(rates) / 50 == pytest.approx(-elbo, abs=0.05)


def test_shared_nats_of_a_latent_that_the_decoder_ignores_are_none(expressivity, images):
    torch.manual_seed(0)
    model = expressivity.FactorisedVAE(images, 5, 2)
    model.decoder[0].weight.data.zero_()
    options = expressivity.parse(["--pairs", "200", "--auxiliary-samples", "20"])
    nats = expressivity.shared_nats(model, options)
    # log p(x | z) is log p(x): the truth is 0, between sides that a poor encoder leaves open.
    assert nats.lower.item() < 0.05
    assert nats.upper.item() > -0.05


def test_shared_nats_enclose_those_of_quadrature_closely_whatever_the_encoder(expressivity, images):
    """Four pixels and two latents: I(x; z) by the sum over 16 images and 40 × 40 nodes of Gauss and Hermite.

    4000 pairs: each side within four standard errors of its expectation, a false alarm once in 10 000 seeds; and the
    sides lie close although the encoder was never trained, since half of what they draw is from the prior.
    """
    torch.manual_seed(0)
    model = expressivity.FactorisedVAE(images, 5, 2)
    model.decoder[-1].weight.data *= 8
    nodes, weights = (torch.from_numpy(part).float() for part in np.polynomial.hermite_e.hermegauss(40))
    log_prob = model.conditional(torch.cartesian_prod(nodes, nodes)[:, None]).log_prob(every_image(4)).detach()
    weights = torch.cartesian_prod(weights, weights).prod(1, keepdim=True) / weights.sum() ** 2
    marginal = (weights * log_prob.exp()).sum(0)
    exact = (weights * log_prob.exp() * (log_prob - marginal.log())).sum().item()
    assert exact > 0.1
    nats = expressivity.shared_nats(model, expressivity.parse(["--pairs", "4000", "--auxiliary-samples", "64"]))
    assert nats.lower - 4 * nats.lower_error < exact < nats.upper + 4 * nats.upper_error
    assert (nats.upper - nats.lower).item() < 0.05
