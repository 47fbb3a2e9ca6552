"""Diagnosis of a model: its numbers against known models, its words against known ailments, and silent failures."""

import math
import warnings

import pytest
import torch
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal

import iwbounds as iw
from iwbounds.evidence.diagnose import diagnose, gradient_snr
from iwbounds.evidence.health import HealthMonitor, UnhealthyWeights, check_health
from tests.oracles import known_weights


def lognormal_model(x, shift=1.0):
    """log w ~ N(−s²/2, s²) with s = shift, log p(x) = 0."""
    return Normal(0.0, 1.0).log_prob, Normal(torch.full_like(x, shift), 1.0)


class Linear(nn.Module):
    """z ~ N(0, I), x | z ~ N(Wz, I), q(z | x) from a linear encoder."""

    def __init__(self, width=3):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, x):
        mean, log_scale = self.encoder(x).chunk(2, -1)

        def log_joint(z):
            return Normal(0.0, 1.0).log_prob(z).sum(-1) + Normal(self.decoder(z), 1.0).log_prob(x).sum(-1)

        return log_joint, Independent(Normal(mean, log_scale.exp()), 1)


def test_rows_agree_with_lognormal_weights():
    """400 data of 1000 samples: each figure within 5 standard errors or 2 %, whichever is coarser."""
    torch.manual_seed(0)
    found = diagnose(lognormal_model, torch.zeros(400, dtype=torch.float64))
    assert found.elbo == pytest.approx(-0.5, abs=0.01)
    for row in found.rows:
        assert row.iwae == pytest.approx(known_weights.lognormal_iwae(1.0, row.num_samples), abs=0.01)
        # Var w = e − 1; its estimate from 1000 weights has a heavy tail.
        assert row.predicted_gap == pytest.approx((math.e - 1) / (2 * row.num_samples), rel=0.05)
    last = found.rows[-1]
    assert last.jackknife == pytest.approx(0.0, abs=0.005)
    assert last.ess == pytest.approx(1000 / math.e, rel=0.1)
    assert 0.1 < last.pareto_k < 0.5


def test_reading_of_a_tight_proposal_a_loose_one_and_a_hopeless_one():
    torch.manual_seed(1)
    x = torch.zeros(50, dtype=torch.float64)
    assert "Every bound is tight" in diagnose(lambda x: lognormal_model(x, 0.05), x).reading[0]
    loose = diagnose(lambda x: lognormal_model(x, 1.2), x, (1, 20)).reading
    assert "IWAE is about" in loose[0]
    assert "raise K to about" in loose[1]
    assert "Distrust the evidence" in diagnose(lambda x: lognormal_model(x, 5.0), x).reading[0]


def test_reading_of_data_with_nan():
    def model(x):
        log_joint, q = lognormal_model(x)
        return lambda z: log_joint(z) + torch.where(x > 0, math.nan, 0.0), q

    found = diagnose(model, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), (1, 10))
    assert found.num_nonfinite == 1
    assert "NaN" in found.reading[0]
    assert math.isfinite(found.elbo)


def test_table_has_gradients_of_the_estimators_that_fit_and_touches_none():
    torch.manual_seed(2)
    model = Linear()
    found = diagnose(model, torch.randn(10, 3), (1, 4), repeats=5)
    assert list(found.snr) == [repr(iw.Reparameterized()), repr(iw.DReG()), repr(iw.VIMCO())]
    assert set(found.snr[repr(iw.VIMCO())]) == {4}  # no leave-one-out of one sample
    assert all(p.grad is None for p in model.parameters())
    text = str(found)
    assert "ELBO" in text
    assert "signal/noise" in text


@pytest.mark.slow
def test_the_models_gradient_is_told_from_the_proposals():
    """∂ log p/∂ shift = x − shift − z has mean x/2 − shift and variance 1/2 at the exact posterior, at K = 1."""

    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift, self.loc = (nn.Parameter(torch.zeros((), dtype=torch.float64)) for _ in range(2))

        def forward(self, x):
            log_joint = lambda z: Normal(0.0, 1.0).log_prob(z) + Normal(z + self.shift, 1.0).log_prob(x)  # noqa: E731
            return log_joint, Normal(x / 2 + self.loc, 0.5**0.5)

    torch.manual_seed(8)
    found = diagnose(Shifted(), torch.full((1,), 2.0, dtype=torch.float64), (1, 100), parameters=[], repeats=500)
    # 500 repeats: relative noise of 4 % at a ratio of √2.
    assert found.model_snr[1] == pytest.approx(2**0.5, rel=0.15)
    # At the exact posterior all weights are equal: the mean of 100 has a tenth of the noise.
    assert found.model_snr[100] == pytest.approx(10 * 2**0.5, rel=0.15)
    assert found.snr == {}
    assert "\nmodel   " in str(found)
    assert any("the model's gradient has a ratio" in line for line in found.reading)
    assert diagnose(Shifted(), torch.zeros(1).double(), (1,), model_parameters=[], repeats=2).model_snr == {}


class Latent(nn.Module):
    """One decoder weight, and a proposal of the kind asked for, with a weight of its own."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.slope, self.loc = (nn.Parameter(torch.full((), 0.4, dtype=torch.float64)) for _ in range(2))

    def forward(self, x):
        def log_joint(z):
            return Normal(0.0, 1.0).log_prob(z) + Normal(self.slope * z, 1.0).log_prob(x)

        means = self.loc * x
        q = {
            "hierarchical": lambda: iw.HierarchicalProposal(
                Normal(means, 0.5), lambda psi: Normal(psi, 0.8), lambda z: Normal(z / 2, 0.5), num_aux=2
            ),
            "semi-implicit": lambda: iw.HierarchicalProposal(Normal(means, 0.5), lambda psi: Normal(psi, 0.8), None, 2),
            "quasi-random": lambda: iw.QuasiRandom(Normal(means, 1.0)),
            "stratified": lambda: iw.StratifiedMixture(None, Normal(torch.stack([means, means + 1], -1), 1.0)),
        }
        return log_joint, q[self.kind]()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "gradients"),
    [
        ("hierarchical", [iw.Reparameterized(), iw.DReG(), iw.VIMCO()]),
        ("semi-implicit", [iw.Reparameterized(), iw.DReG(), iw.VIMCO()]),
        ("quasi-random", [iw.Reparameterized()]),
        ("stratified", [iw.Reparameterized()]),
    ],
)
def test_extended_proposals_are_diagnosed_too(kind, gradients):
    torch.manual_seed(9)
    model = Latent(kind)
    found = diagnose(model, torch.linspace(-1, 1, 5).double(), (1, 4, 100), repeats=10)
    assert list(found.snr) == list(map(repr, gradients))
    assert set(found.snr[repr(iw.Reparameterized())]) == ({4, 100} if kind == "stratified" else {1, 4, 100})
    assert found.model_snr[100] > found.model_snr[4] > 0
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.slow
def test_snr_of_a_gaussian_gradient_is_mean_over_deviation():
    """∂ log w / ∂ loc = m − loc − ε: ratio |m − loc|. 3000 repeats leave 3 % of noise at 1.5; ±0.15 is 3.5 of them."""
    loc = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    torch.manual_seed(3)

    def build():
        return Normal(2.0, 1.0).log_prob, Normal(loc, 1.0)

    snr = gradient_snr(build, [loc], iw.ELBO(), iw.Reparameterized(), num_samples=1, repeats=3000)
    assert snr == pytest.approx(1.5, abs=0.15)
    assert loc.grad is None


def test_snr_without_signal_is_zero_and_without_noise_infinite():
    loc = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(4)
    at_optimum = gradient_snr(
        lambda: (Normal(0.0, 1.0).log_prob, Normal(loc, 1.0)), [loc], iw.ELBO(), iw.STL(), num_samples=4, repeats=5
    )
    assert at_optimum in (0.0, math.inf)
    assert at_optimum == 0.0
    scale = torch.ones(1, dtype=torch.float64, requires_grad=True)
    flat = gradient_snr(
        lambda: (lambda z: 0.0 * z, Normal(0.0, scale)), [scale], iw.ELBO(), iw.Reparameterized(), repeats=5
    )
    assert flat > 1e6  # ∂ E[−log q] / ∂ scale is 1 / scale for every draw, up to rounding


@pytest.mark.slow
def test_dreg_gains_where_the_reparameterised_gradient_loses():
    """Slopes of −1/2 and +1/2 in log K once K is large: at 256 samples far more than a factor of 2 apart."""
    loc = torch.full((50,), 0.3, dtype=torch.float64, requires_grad=True)

    def build():
        return Independent(Normal(torch.zeros(50, dtype=torch.float64), 1.0), 1).log_prob, Independent(
            Normal(loc * 0.5, 0.98), 1
        )

    torch.manual_seed(5)
    ratio = {
        gradient: [gradient_snr(build, [loc], iw.IWAE(), gradient, k, 200) for k in (4, 256)]
        for gradient in (iw.Reparameterized(), iw.DReG())
    }
    assert ratio[iw.Reparameterized()][1] < ratio[iw.Reparameterized()][0] / 2
    assert ratio[iw.DReG()][1] > 2 * ratio[iw.Reparameterized()][1]


def test_health_of_equal_and_of_collapsed_weights():
    log_w = torch.zeros(32, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_health(log_w).healthy
        assert check_health(torch.zeros(1, 5)).healthy  # one sample: nothing can be concluded
    log_w[0, :3] = 50.0
    with pytest.warns(UnhealthyWeights, match="one sample of 32 carries the estimate"):
        assert not check_health(log_w).healthy


def test_health_of_a_heavy_tail_and_of_nan():
    u = torch.rand(1000, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with pytest.warns(UnhealthyWeights, match="tail of the weights is too heavy"):
        assert check_health(-1.2 * u.log()).pareto_k > 0.9
    with pytest.warns(UnhealthyWeights, match="NaN"):
        check_health(torch.full((8, 2), math.nan))


def test_a_loop_is_warned_once():
    """Python's default filter shows a warning once per line and text, so the text must not carry changing numbers."""
    log_w = torch.zeros(200, 3)
    log_w[0] = 50.0
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for step in range(5):
            check_health(log_w + step)
    assert len(seen) == 1


@pytest.mark.parametrize("ask", [check_health, HealthMonitor(patience=1)], ids=["check_health", "HealthMonitor"])
def test_the_warning_names_the_line_that_asked(ask):
    """And not that of its caller: a filter, and a reader, go by the line."""
    log_w = torch.zeros(32, 3)
    log_w[0] = 50.0

    def training_step():
        ask(log_w)

    with pytest.warns(UnhealthyWeights) as seen:
        training_step()
    assert seen[0].lineno == training_step.__code__.co_firstlineno + 1


def test_monitor_waits_for_patience_and_warns_once():
    good, bad = torch.zeros(32, 3), torch.cat([torch.full((1, 3), 50.0), torch.zeros(31, 3)])
    monitor = HealthMonitor(patience=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for log_w in (bad, bad, good, bad, bad):
            monitor(log_w)
    with pytest.warns(UnhealthyWeights, match="3 estimates in a row"):
        monitor(bad)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor(bad)
    assert monitor.unhealthy_in_a_row == 4


def logistic_regression(width=30, count=100):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, width, generator=generator)
    y = (torch.rand(count, generator=generator) < (x @ torch.randn(width, generator=generator)).sigmoid()).float()

    def log_joint(z):
        logits = z @ x.T
        return Normal(0.0, 1.0).log_prob(z).sum(-1) + (y * logits - nn.functional.softplus(logits)).sum(-1)

    return log_joint


def laplace(log_joint, width=30):
    """Mode and Cholesky factor of the covariance there."""
    loc = torch.zeros(width)
    for _ in range(20):
        hessian = torch.func.hessian(log_joint)(loc)
        loc = loc - torch.linalg.solve(hessian, torch.func.grad(log_joint)(loc))
    return loc, torch.linalg.cholesky(torch.linalg.inv(-hessian))


def trained(learning_rate, good_start=False, steps=60):
    """IWAE with K = 32 and a full covariance, as in the run that ended −250 nats away in silence."""
    log_joint, width = logistic_regression(), 30
    loc, factor = laplace(log_joint) if good_start else (torch.zeros(width), torch.eye(width))
    loc, factor = loc.requires_grad_(), factor.requires_grad_()
    optimizer = torch.optim.Adam([loc, factor], learning_rate)
    monitor = HealthMonitor(patience=20)
    for _ in range(steps):
        scale = factor.tril(-1) + torch.diag(factor.diagonal().abs() + 1e-3)
        estimate = iw.estimate(log_joint, MultivariateNormal(loc, scale_tril=scale), num_samples=32)
        optimizer.zero_grad()
        (-estimate.value).backward()
        optimizer.step()
        monitor(estimate)
    return monitor


def test_training_that_has_gone_wrong_is_noticed():
    """A full covariance far from the posterior: the effective sample size stays near 1 of 32, and the loop is told."""
    torch.manual_seed(6)
    with pytest.warns(UnhealthyWeights, match="Take a smaller learning rate"):
        assert trained(learning_rate=0.2).warned


def test_training_that_goes_well_is_left_alone():
    """From the mode's Gaussian, with small steps; warnings are errors here."""
    torch.manual_seed(7)
    assert not trained(learning_rate=0.0005, good_start=True).warned
