"""Special cases, orders, modes of the engine, and mistakes, of hierarchical proposals."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Independent, Normal

import iwbounds as iw
from iwbounds.proposals import HierarchicalProposal
from iwbounds.testing import assert_not_above, assert_sandwich, assert_upper_bound
from tests.oracles.linear_gaussian import LinearHierarchy
from tests.oracles.nodes import NodeNormal, gauss_hermite_grid

PATHWISE = {"dreg": iw.DReG(), "reparameterized": iw.Reparameterized()}
KINDS = {
    "iwhvi": {"reverse": True, "num_aux": 3},
    "iwhvi, no inner rule": {"reverse": True, "num_aux": 3, "gradient": iw.Reparameterized()},
    "hvm": {"reverse": True, "num_aux": 0},
    "sivi": {"reverse": False, "num_aux": 3},
    "sivi, shared": {"reverse": False, "num_aux": 3, "shared": True},
}


def test_an_exact_reverse_model_gives_the_density_itself() -> None:
    model = LinearHierarchy()
    q = HierarchicalProposal(model.mixing(), model.conditional, model.exact_reverse, 3)
    z, psi = q.rsample((50,))
    log_q = model.marginal().log_prob(z)
    for num_aux in (0, 1, 3):
        torch.testing.assert_close(q.log_prob_upper(z, psi, num_aux), log_q, rtol=0, atol=1e-10)
    torch.testing.assert_close(q.log_prob_lower(z), log_q, rtol=0, atol=1e-10)


def test_hvm_is_one_log_weight_of_the_own_auxiliary_variable() -> None:
    model = LinearHierarchy()
    q = model.proposal(0)
    z, psi = q.rsample((50,))
    by_hand = model.mixing().log_prob(psi) + model.conditional(psi).log_prob(z) - model.reverse(z).log_prob(psi)
    torch.testing.assert_close(q.log_prob_upper(z, psi), by_hand, rtol=0, atol=1e-10)


def test_the_mixing_distribution_as_reverse_model_is_sivi() -> None:
    model = LinearHierarchy()
    as_reverse = HierarchicalProposal(model.mixing(), model.conditional, lambda z: model.mixing(z.shape), 4)
    z, psi = as_reverse.rsample((50,))
    values = []
    for q in (as_reverse, model.proposal(4, reverse=False)):
        torch.manual_seed(1)
        values.append((q.log_prob_upper(z, psi), q.log_prob_lower(z)))
    for one, other in zip(*values, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("reverse", [True, False], ids=["iwhvi", "sivi"])
def test_expected_bounds_of_log_q_are_ordered(reverse) -> None:
    """E U_0 ≥ E U_1 ≥ E U_2 ≥ E log q ≥ E Λ_2 ≥ E Λ_1 by quadrature over ψ_0, z and up to two ψ_k."""
    noise, weights = gauss_hermite_grid(16, 4)
    model = LinearHierarchy(values={**LinearHierarchy().values, "conditional_slope": 0.5, "conditional_scale": 0.9})
    psi = model.mixing((noise.shape[1],)).loc + model.parameters["mixing_scale"] * noise[0]
    z = (model.conditional(psi).loc + model.parameters["conditional_scale"] * noise[1]).unsqueeze(0)

    def expected(num_aux: int, own: bool) -> float:
        drawn = noise[2 : 2 + num_aux].unsqueeze(1)
        mixing = NodeNormal(model.mixing((noise.shape[1],)), drawn.squeeze(1))
        backwards = (lambda z: NodeNormal(model.reverse(z), drawn)) if reverse else None
        q = HierarchicalProposal(mixing, model.conditional, backwards, num_aux)
        bound = q.log_prob_upper(z, psi.unsqueeze(0)) if own else q.log_prob_lower(z)
        return (weights * bound).sum().item()

    log_q = (weights * model.marginal().log_prob(z)).sum().item()
    chain = [expected(0, True), expected(1, True), expected(2, True), log_q, expected(2, False), expected(1, False)]
    assert all(high > low + 1e-6 for high, low in itertools.pairwise(chain))


@pytest.mark.parametrize("reverse", [True, False], ids=["iwhvi", "sivi"])
@pytest.mark.parametrize("num_aux", [1, 5])
def test_both_sides_of_log_q_pass_sequential_tests(num_aux, reverse) -> None:
    """False alarms below 1e-6; factors 1 + 0.1 of either side would be refused within these 20 000 draws."""
    model = LinearHierarchy()
    q = model.proposal(num_aux, reverse)
    with torch.no_grad():
        z, psi = q.rsample((20_000,))
        assert_upper_bound(q.log_prob_upper(z, psi), model.marginal().log_prob(z))
        assert_not_above(q.log_prob_lower(z), model.marginal().log_prob(z))
        with pytest.raises(AssertionError, match="refuted"):
            assert_not_above(q.log_prob_lower(z) + math.log(1.2), model.marginal().log_prob(z))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_evidence_bound_is_lower(kind) -> None:
    """E[ŵ] = p(x) in each case, the shared one included. False alarms below 1e-6."""
    model = LinearHierarchy()
    q = HierarchicalProposal(
        model.mixing((20_000,)), model.conditional, model.reverse if kind["reverse"] else None, kind["num_aux"],
        **{name: value for name, value in kind.items() if name not in ("reverse", "num_aux")},
    )  # fmt: skip
    with torch.no_grad():
        estimate = iw.estimate(model.log_joint, q, num_samples=2)
    assert estimate.direction is iw.Direction.LOWER
    assert estimate.log_weights.shape == (2, 20_000)
    assert_not_above(estimate.value, model.log_evidence())
    p_hat = (estimate.value - model.log_evidence()).exp()
    assert p_hat.mean().item() == pytest.approx(1.0, abs=6 * p_hat.std().item() / math.sqrt(20_000))


def test_bounds_of_log_q_sandwich_each_other_on_simulated_pairs() -> None:
    """No density is known to this test: pairs (ψ, z) play latents and data."""
    model = LinearHierarchy()
    q = model.proposal(2)

    def simulate() -> tuple[Tensor, Tensor]:
        z, psi = q.rsample((100,))
        return z.detach(), psi.detach()

    assert_sandwich(
        simulate,
        lambda z, psi: model.mixing().log_prob(psi) + model.conditional(psi).log_prob(z),
        model.reverse,
        lower=lambda log_joint, tau, count: iw.estimate(log_joint, tau, num_samples=count),
        upper=lambda log_joint, tau, psi, count: q.log_prob_upper(model_z(tau), psi, count),
        max_datasets=1000,
    )


def model_z(tau: Normal) -> Tensor:
    """The z that a reverse model of the default values was called with."""
    values = LinearHierarchy().values
    return ((tau.loc - values["reverse_shift"]) / values["reverse_slope"]).detach()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("gradient", [None, iw.Reparameterized(), iw.VIMCO()], ids=["default", "total", "vimco"])
def test_chunks_change_neither_value_nor_gradient(kind, gradient) -> None:
    if kind.get("shared"):
        gradient = None  # the total derivative, which the engine refuses by any pathwise name
    results = []
    for chunk_size in (None, 2):
        model = LinearHierarchy()
        options = {name: value for name, value in kind.items() if name not in ("reverse", "num_aux")}
        reverse = model.reverse if kind["reverse"] else None
        q = HierarchicalProposal(model.mixing((4,)), model.conditional, reverse, kind["num_aux"], **options)
        torch.manual_seed(2)
        estimate = iw.estimate(model.log_joint, q, iw.IWAE(), gradient, num_samples=5, chunk_size=chunk_size)
        estimate.value.sum().backward()
        results.append((estimate.value.detach(), model.gradients()))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-12)
    assert results[0][1] == pytest.approx(results[1][1], abs=1e-12)
    used = [name for name, g in results[0][1].items() if g != 0]
    assert set(used) >= {"mixing_mean", "conditional_scale", "model_slope"}
    assert ("reverse_scale" in used) == kind["reverse"]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_backward_on_few_samples_is_unbiased(kind) -> None:
    """The same draws, resampled 4000 times: within 6 standard errors of the full gradient (false alarms below 1e-7)."""
    options = {name: value for name, value in kind.items() if name not in ("reverse", "num_aux")}

    def gradients(copies: int, few: int | None) -> dict[str, Tensor]:
        model = LinearHierarchy()
        parts = {name: p.detach().expand(copies).clone().requires_grad_() for name, p in model.parameters.items()}
        model.parameters = parts
        torch.manual_seed(3)
        noise = [torch.randn(n, 4, dtype=torch.float64).repeat(1, copies // 4) for n in (4, 4, 12)]
        mixing = Normal(parts["mixing_mean"], parts["mixing_scale"])

        def conditional(psi: Tensor) -> Normal:
            return NodeNormal(model.conditional(psi), noise[1])

        def backwards(z: Tensor) -> Normal:
            return NodeNormal(model.reverse(z), noise[2].reshape(3, 4, -1)[:count])

        count, reverse = kind["num_aux"], backwards if kind["reverse"] else None
        drawn = 4 if kind["reverse"] else 4 + count if kind.get("shared") else 4 + 4 * count
        first = torch.cat([noise[0], noise[2]])[:drawn]
        q = HierarchicalProposal(NodeNormal(mixing, first), conditional, reverse, count, **options)
        estimate = iw.estimate(model.log_joint, q, num_samples=4, backward_samples=few)
        estimate.value.sum().backward()
        return {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in parts.items()}

    full, few = gradients(4, None), gradients(4000, 2)
    for name, truth in full.items():
        drawn = few[name].reshape(-1, 4)
        error = drawn.std(0) / math.sqrt(len(drawn))
        assert ((drawn.mean(0) - truth).abs() <= 6 * error + 1e-12).all(), name


def test_an_implicit_mixing_network_is_trained_without_a_density() -> None:
    """By hand: log mean of the components at the same noise, differentiated through z and through every ψ."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, generator=generator, dtype=torch.float64).requires_grad_()
    noise = torch.randn(8, 3, 2, generator=generator, dtype=torch.float64)
    z_noise = torch.randn(2, 3, generator=generator, dtype=torch.float64)

    def network(shape):
        return torch.tanh(noise[: shape[0]] @ weight)

    def conditional(psi):
        return NodeNormal(Normal(psi, 0.5), z_noise) if psi.shape[0] == 2 and psi.ndim == 2 else Normal(psi, 0.5)

    def log_joint(z):
        return Normal(0.0, 1.0).log_prob(z)

    q = HierarchicalProposal(network, conditional, None, 3)
    value = iw.estimate(log_joint, q, iw.IWAE(), iw.Reparameterized(), num_samples=2).value
    (gradient,) = torch.autograd.grad(value.sum(), weight)

    psi = torch.tanh(noise @ weight).reshape(4, 2, 3)
    z = psi[0] + 0.5 * z_noise
    log_q = Normal(psi, 0.5).log_prob(z).logsumexp(0) - math.log(4)
    by_hand = iw.IWAE()(log_joint(z) - log_q)
    torch.testing.assert_close(value, by_hand)
    torch.testing.assert_close(gradient, torch.autograd.grad(by_hand.sum(), weight)[0])


def test_float32_weights_do_not_drown_in_the_auxiliary_densities() -> None:
    """At an exact reverse model the weights are exact too, though the product of τ is of the size e^20000."""
    dims, count = 20, 500
    scale = 1 / math.sqrt(2)
    q = HierarchicalProposal(
        Independent(Normal(torch.zeros(dims), 1.0), 1),
        lambda psi: Independent(Normal(psi, 1.0), 1),
        lambda z: Independent(Normal(z / 2, scale), 1),
        count,
    )

    def log_q(z):
        return Independent(Normal(torch.zeros(dims), math.sqrt(2)), 1).log_prob(z)

    log_weights = iw.estimate(log_q, q, num_samples=20).log_weights
    assert log_weights.abs().max() < 1e-4


def test_an_event_of_several_axes_and_a_batch_keep_their_places() -> None:
    """ψ of shape (3, 2) per datum, 5 data: against a loop over data."""
    torch.manual_seed(0)
    mean = torch.randn(5, 3, 2, dtype=torch.float64)
    mixing = Independent(Normal(mean, 1.0), 2)

    def conditional(psi):
        return Independent(Normal(psi.sum(-1), 1.0), 1)

    def reverse(z):
        return Independent(Normal(z.unsqueeze(-1).expand(*z.shape, 2) / 3, 1.0), 2)

    q = HierarchicalProposal(mixing, conditional, reverse, 2)
    z, psi = q.rsample((4,))
    assert z.shape == (4, 5, 3)
    log_v = q.log_weights(z, psi)
    assert log_v.shape == (3, 4, 5)
    for i in range(5):
        single = HierarchicalProposal(Independent(Normal(mean[i], 1.0), 2), conditional, reverse, 0)
        expected = single.log_prob_upper(z[:, i], psi[:, i])
        torch.testing.assert_close(log_v[0, :, i], expected)
    estimate = iw.estimate(lambda z: z.sum(-1), q, num_samples=4)
    assert estimate.value.shape == (5,)


def test_the_jackknife_of_auxiliary_weights_has_less_bias_than_either_bound() -> None:
    """By sums over 200 000 draws: 6 standard errors are below 2e-3, the bound is off by more than 3e-2."""
    model = LinearHierarchy()
    with torch.no_grad():
        q = model.proposal(4, reverse=False)
        z, _psi = q.rsample((200_000,))
        log_q = model.marginal().log_prob(z)
        lower = q.log_weights(z)
        leave_one_out = torch.stack([iw.IWAE()(torch.cat([lower[:k], lower[k + 1 :]])) for k in range(4)])
        jackknife = 4 * iw.IWAE()(lower) - 3 * leave_one_out.mean(0)
    assert abs((jackknife - log_q).mean()) < 0.4 * abs((iw.IWAE()(lower) - log_q).mean())


MISTAKES = {
    "no num_aux": (lambda: HierarchicalProposal(Normal(0.0, 1.0), lambda psi: Normal(psi, 1.0)), "num_aux"),
    "negative num_aux": (
        lambda: HierarchicalProposal(Normal(0.0, 1.0), lambda psi: Normal(psi, 1.0), None, -1),
        "num_aux >= 0",
    ),
    "sampler with a reverse model": (
        lambda: HierarchicalProposal(torch.randn, lambda psi: Normal(psi, 1.0), lambda z: Normal(z, 1.0), 2),
        "density",
    ),
    "inner gradient": (
        lambda: HierarchicalProposal(
            Normal(0.0, 1.0), lambda psi: Normal(psi, 1.0), lambda z: Normal(z, 1.0), 2, iw.VIMCO()
        ),
        "inner gradient",
    ),
    "shared with a reverse model": (
        lambda: HierarchicalProposal(
            Normal(0.0, 1.0), lambda psi: Normal(psi, 1.0), lambda z: Normal(z, 1.0), 2, shared=True
        ),
        "reverse=None",
    ),
    "lower bound of nothing": (lambda: LinearHierarchy().proposal(0).log_prob_lower(torch.zeros(3)), "at least 1"),
    "sample shape": (lambda: LinearHierarchy().proposal(0).rsample((2, 3)), "num_samples,"),
    "batch of z that psi lacks": (
        lambda: iw.estimate(
            lambda z: z, HierarchicalProposal(Normal(0.0, 1.0), lambda psi: Normal(torch.zeros(*psi.shape, 7), 1.0),
            None, 2)
        ),
        "expand",
    ),
    "a conditional without rsample": (
        lambda: iw.estimate(
            lambda z: z, HierarchicalProposal(Normal(0.0, 1.0), lambda psi: Bernoulli(logits=psi), None, 2)
        ),
        "reparameterized=",
    ),
    "samples of a semi-implicit proposal": (
        lambda: iw.estimate(lambda z: z, LinearHierarchy().proposal(2, False), samples=(torch.zeros(3),
        torch.arange(3))), "num_samples",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_meet_an_error_that_says_what_to_do(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_the_density_itself_is_refused() -> None:
    with pytest.raises(TypeError, match="log_prob_upper"):
        LinearHierarchy().proposal(2).log_prob(torch.zeros(3))


@pytest.mark.parametrize("gradient", [iw.DReG(), iw.STL(), iw.VIMCO()], ids=repr)
def test_shared_mixing_samples_refuse_what_needs_independent_ones(gradient) -> None:
    q = LinearHierarchy().proposal(2, False, shared=True)
    with pytest.raises(ValueError, match=r"samples depend on each other.* What fits: Reparameterized\(\)"):
        iw.estimate(lambda z: z, q, iw.IWAE(), gradient)


def test_the_default_gradient_of_shared_mixing_samples_is_the_total_derivative() -> None:
    def gradients(gradient):
        torch.manual_seed(0)
        model = LinearHierarchy()
        value = iw.estimate(model.log_joint, model.proposal(2, False, shared=True), iw.IWAE(), gradient, num_samples=3)
        return torch.autograd.grad(value.value.sum(), list(model.parameters.values()), allow_unused=True)

    for one, other in zip(gradients(None), gradients(iw.Reparameterized()), strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


class PreparedBernoulli(Bernoulli):
    def __init__(self, logits: Tensor, outcome: Tensor) -> None:
        super().__init__(logits=logits)
        self._outcome = outcome

    def sample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        return self._outcome


def test_a_discrete_z_of_a_continuous_psi_trains_mixing_and_conditional_by_its_score() -> None:
    """M = 1, K = 1: both z over a grid of the noise of both ψ."""
    noise, weights = gauss_hermite_grid(40, 2)
    noise, weights = noise.repeat(1, 2), weights.repeat(2)
    z = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat_interleave(1600).unsqueeze(0)

    def log_joint(z):
        return Bernoulli(torch.tensor(0.8, dtype=torch.float64)).log_prob(z) - 0.5

    parameters = [torch.tensor([0.3, -0.5], dtype=torch.float64, requires_grad=True) for _ in range(2)]

    (mean, shift), probability = parameters[0], None
    mixing = NodeNormal(Normal(mean.expand(3200), 0.9), noise)

    def conditional(psi: Tensor) -> Bernoulli:
        return PreparedBernoulli(psi + shift, z)

    q = HierarchicalProposal(mixing, conditional, None, 1, reparameterized=(False, True))
    estimate = iw.estimate(log_joint, q, iw.IWAE(), num_samples=1)
    psi = mean + 0.9 * noise
    probability = weights * Bernoulli(logits=psi[0] + shift).log_prob(z[0]).exp()
    (probability.detach() * estimate.value).sum().backward()

    mean, shift = parameters[1]
    psi = mean + 0.9 * noise
    log_q = Bernoulli(logits=psi + shift).log_prob(z).logsumexp(0) - math.log(2)
    probability = weights * Bernoulli(logits=psi[0] + shift).log_prob(z[0]).exp()
    (probability * (log_joint(z)[0] - log_q)).sum().backward()
    torch.testing.assert_close(parameters[0].grad, parameters[1].grad, rtol=0, atol=1e-8)


def test_given_samples_of_a_discrete_z_default_to_its_score_though_psi_carries_a_graph() -> None:
    mean = torch.zeros(3, requires_grad=True)

    def gradient_of(rule: iw.Gradient | None) -> Tensor:
        torch.manual_seed(0)
        q = HierarchicalProposal(
            Normal(mean, 1.0), lambda psi: Bernoulli(logits=psi), None, 2, reparameterized=(False, True)
        )
        log_joint, extended = q.extend(lambda z: 0.3 * z)
        value = iw.estimate(log_joint, extended, gradient=rule, samples=extended.sample((8,))).value
        return torch.autograd.grad(value.sum(), mean)[0]

    torch.testing.assert_close(gradient_of(None), gradient_of(iw.VIMCO()))
    with pytest.raises(ValueError, match="carry the gradient of the parameters"):
        gradient_of(iw.DReG())


def test_a_categorical_mixing_distribution_defaults_to_vimco() -> None:
    logits = torch.zeros(3, requires_grad=True)
    means = torch.tensor([-1.0, 0.0, 2.0])
    q = HierarchicalProposal(Categorical(logits=logits), lambda n: Normal(means[n], 1.0), None, 5)
    iw.estimate(lambda z: Normal(1.0, 1.0).log_prob(z), q, num_samples=8).value.backward()
    assert logits.grad.abs().sum() > 0


def test_what_the_extended_latent_does_not_allow_is_refused_with_the_reason():
    mixing = Normal(torch.zeros(3, requires_grad=True), 1.0)
    iwhvi = iw.HierarchicalProposal(mixing, lambda psi: Normal(psi, 1.0), lambda z: Normal(z / 2, 0.7), 2)
    shared = iw.HierarchicalProposal(mixing, lambda psi: Normal(psi, 1.0), num_aux=2, shared=True)
    log_joint = Normal(torch.zeros(3), 1.0).log_prob
    with pytest.raises(ValueError, match=r"Wake\(\) is not defined for a reverse model"):
        iw.estimate(log_joint, iwhvi, gradient=iw.Wake(), num_samples=4)
    with pytest.raises(ValueError, match="proposal_bound needs reverse=None"):
        iw.estimate(log_joint, iwhvi, proposal_bound=iw.ELBO(), num_samples=4)
    with pytest.raises(ValueError, match="depend on each other"):
        iw.estimate(log_joint, shared, gradient=iw.DReG(), num_samples=4)
