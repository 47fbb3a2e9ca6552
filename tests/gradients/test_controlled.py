"""Controlled: exact for strengths that come from elsewhere, near the least variance, and honest about its state."""

import copy

import pytest
import torch
from torch.distributions import Normal

import iwbounds as iw
from iwbounds import Controlled
from iwbounds.gradients.controlled import _described
from tests.oracles import expectation
from tests.registry import BOUNDS, CONTROLLED, JUMPING, Own
from tests.test_exactness import assert_same, fits

DOUBLE = torch.float64


@pytest.mark.slow
@pytest.mark.parametrize("gradient", CONTROLLED.values(), ids=CONTROLLED)
@pytest.mark.parametrize("name", [name for name in BOUNDS if fits(name, 2)])
def test_any_given_strengths_are_unbiased(name, gradient):
    """By quadrature, for model and proposal parameters apart: 1e-8. (The registry's tests take one of them further.)"""
    model, bound = expectation.gaussian(2, 48), BOUNDS[name]()
    assert_same(model, model.estimated(bound, gradient()), model.truth(bound), 1e-8)


@pytest.mark.parametrize("name", BOUNDS)
def test_zero_and_one_are_reparameterized_and_dreg(name):
    """Coefficient by coefficient, with nothing lost in a difference."""
    bound = BOUNDS[name]()
    count = next(k for k in (2, 3, 4, 6) if k >= bound.min_samples and fits(name, k))
    log_w = 3 * torch.randn(count, 5, dtype=DOUBLE)
    for strengths, other in (((0.0, 0.0), iw.Reparameterized()), ((1.0, 0.0), iw.DReG())):
        mine = Controlled(strengths=strengths).coefficients(bound, log_w)
        its = other.coefficients(bound, log_w)
        torch.testing.assert_close(mine.path, its.path, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(mine.score, torch.zeros_like(log_w) if its.score is None else its.score)
        torch.testing.assert_close(mine.model, its.model)


def noise_and_probability(nodes):
    noise, log_probability = expectation.gauss_hermite(nodes, 2)
    return noise, log_probability.exp()


def gaussian_gradient(gradient, mean, scale, noise, learn=None):
    """Gradients of IWAE for N(0, I) from N(mean, scale²) in plain torch, ``(2, B, d)``: of the means and of the scales.

    ``noise`` is ``(K, B, d)``. ``learn`` receives what :meth:`iwbounds.Controlled.observe` does, before or after.
    """
    z = mean + scale * noise
    log_w = (Normal(0.0, 1.0).log_prob(z) - Normal(mean, scale).log_prob(z)).sum(-1)
    slope_p, slope_q = -z, -noise / scale
    if learn == "before":  # the sabotage: the strengths then depend on the samples that they weigh
        gradient.observe(iw.IWAE(), log_w, slope_p, slope_q)
        gradient.update(log_w)
    found = gradient.coefficients(iw.IWAE(), log_w)
    if learn == "after":
        gradient.observe(iw.IWAE(), log_w, slope_p, slope_q)
        gradient.update(log_w)
    path = found.path.unsqueeze(-1) * (slope_p - slope_q)
    score = 0.0 if found.score is None else found.score.unsqueeze(-1)
    return torch.stack([(path - score * slope_q).sum(0), (path * noise + score * (noise**2 - 1) / scale).sum(0)])


@pytest.mark.slow
@pytest.mark.parametrize("learn", ["after", "before"])
def test_strengths_that_read_their_own_samples_are_biased_and_ours_do_not(learn):
    """One datum a step, K = 2, all pairs of 16 nodes: the expectation over each step's samples is exact."""
    noise, probability = noise_and_probability(16)
    seen = Controlled(decay=0.5)
    seen.observe(iw.IWAE(), torch.zeros(2, 100), torch.randn(2, 100), torch.randn(2, 100))
    seen.update(torch.zeros(100))
    found = torch.zeros(2, dtype=DOUBLE)
    for i, p in enumerate(probability):
        found += p * gaussian_gradient(copy.deepcopy(seen), 0.5, 0.8, noise[:, i, None, None], learn).flatten()
    truth = gaussian_gradient(iw.DReG(), 0.5, 0.8, noise.unsqueeze(-1))
    error = (found - (truth.squeeze(-1) * probability).sum(1)).abs().max().item()
    assert error < 1e-6 if learn == "after" else error > 1e-2


VARIANCES = [
    # dimensions, mean, scale; Reparameterized, DReG, best of {c}, best of {c, c²}: math of the location and scale
    (20, 0.0, 0.6, 22.0, 46.2, 0.98, 0.35),
    (20, 0.0, 1.5, 31.9, 5.35, 1.99, 1.01),
    (5, 1.0, 0.6, 5.2, 22.6, 2.7, 2.6),
    (20, 0.5, 1.2, 29.9, 1.63, 1.00, 0.86),
    (20, 0.1, 1.05, 8.1, 0.0024, 0.00085, 0.00068),
]


def total_variance(gradient, dimensions, mean, scale, count=8, data=8_000):
    torch.manual_seed(7)
    found = gaussian_gradient(gradient, mean, scale, torch.randn(count, data, dimensions, dtype=DOUBLE))
    return found.var(1).sum().item()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dimensions", "mean", "scale", "count"),
    [(1, 0.5, 0.7, 2), (2, 0.5, 0.7, 64), (1, 1.0, 1.5, 64), (2, 1.0, 0.5, 2), (1, 0.0, 0.8, 64), (2, 0.2, 2.0, 64)],
)
def test_learned_strengths_are_never_worse_in_few_dimensions(dimensions, mean, scale, count):
    """1.05 times the better of Reparameterized and DReG at most, whose strengths are in the family."""
    gradient = Controlled()
    for _ in range(40):
        gaussian_gradient(gradient, mean, scale, torch.randn(count, 100, dimensions, dtype=DOUBLE), "after")
    case = (dimensions, mean, scale, count)
    least = min(total_variance(iw.Reparameterized(), *case), total_variance(iw.DReG(), *case))
    assert total_variance(gradient, *case) < 1.05 * least


@pytest.mark.slow
@pytest.mark.parametrize(("dimensions", "mean", "scale", "plain", "doubly", "one", "two"), VARIANCES)
def test_learned_strengths_come_near_the_least_variance(dimensions, mean, scale, plain, doubly, one, two):
    """From 40 steps of 100 data: within 25 % of the best, and below both that it contains. K = 8.

    The variances themselves have standard errors of 1 to 4 %; a strength that is off by .1 fails.
    """
    assert total_variance(iw.Reparameterized(), dimensions, mean, scale) == pytest.approx(plain, rel=0.1)
    assert total_variance(iw.DReG(), dimensions, mean, scale) == pytest.approx(doubly, rel=0.1)
    for basis, best in ((1, one), (2, two)):
        gradient = Controlled(basis=basis)
        for _ in range(40):
            gaussian_gradient(gradient, mean, scale, torch.randn(8, 100, dimensions, dtype=DOUBLE), "after")
        variance = total_variance(gradient, dimensions, mean, scale)
        assert variance < 1.25 * best
        assert variance < 1.05 * min(plain, doubly)


def batch(count=8, data=100, scale=0.7):
    """Log-weights and slopes of a Gaussian case with a proposal that is too narrow."""
    noise = torch.randn(count, data, 3, dtype=DOUBLE)
    z = 0.3 + scale * noise
    log_w = (Normal(0.0, 1.0).log_prob(z) - Normal(0.3, scale).log_prob(z)).sum(-1)
    return log_w, -z, -noise / scale


def test_starts_as_dreg_until_a_hundred_data_are_seen():
    gradient = Controlled()
    assert gradient.explain() == "nothing seen yet: DReG"
    for data in (60, 39):
        gradient.observe(iw.IWAE(), *batch(data=data))
        gradient.update(torch.zeros(data))
        assert gradient.strengths_for(iw.IWAE(), 8).tolist() == [1.0, 0.0]
    assert gradient.explain() == "IWAE(), K = 8: DReG, as 99 of 100 data have been seen"
    gradient.observe(iw.IWAE(), *batch(data=1))
    gradient.update(torch.zeros(1))
    assert gradient.strengths_for(iw.IWAE(), 8).tolist() != [1.0, 0.0]


def test_what_is_observed_counts_from_the_next_update_on():
    gradient = Controlled()
    log_w, p, q = batch()
    gradient.observe(iw.IWAE(), log_w, p, q)
    assert gradient.strengths_for(iw.IWAE(), 8).tolist() == [1.0, 0.0]
    gradient.update(log_w[0])
    after = gradient.strengths_for(iw.IWAE(), 8)
    gradient.coefficients(iw.IWAE(), log_w)
    gradient.update(log_w[0])  # nothing new: nothing is forgotten either
    assert gradient.strengths_for(iw.IWAE(), 8).tolist() == after.tolist()


def test_parts_of_a_batch_count_as_the_batch():
    """Several observations between two updates, as of `accumulate`: one step."""
    whole, parts = Controlled(), Controlled()
    log_w, p, q = batch(data=200)
    whole.observe(iw.IWAE(), log_w, p, q)
    for rows in (slice(0, 50), slice(50, 200)):
        parts.observe(iw.IWAE(), log_w[:, rows], p[:, rows], q[:, rows])
    for gradient in (whole, parts):
        gradient.update(log_w[0])
    torch.testing.assert_close(whole.strengths_for(iw.IWAE(), 8), parts.strengths_for(iw.IWAE(), 8))


def sums(gradient, log_w, slope_p, slope_q, sizes=None):
    """What the engine hands in at the end of a backward, of all samples or of groups of them."""
    heard = []
    lesson = gradient.coefficients(iw.IWAE(), log_w).lesson
    lesson.notes.learn, lesson.notes.upstream = heard.append, torch.ones_like(log_w[0])
    parts = [lesson] if sizes is None else lesson.split(sizes)
    slopes = zip(*(slope.split(sizes or [len(log_w)]) for slope in (slope_p, slope_q)), strict=True)
    for part, (p, q) in zip(parts, slopes, strict=True):
        listeners = part.of_p(1), part.of_q(1)
        listeners[0](0, p)
        assert not heard, "nothing is handed in before all slopes have come"
        listeners[1](0, q)
    return heard[0]


def test_sums_of_chunks_add_up():
    gradient = Controlled(basis=3)
    case = batch()
    torch.testing.assert_close(sums(gradient, *case), sums(gradient, *case, sizes=[3, 5]))


def test_shares_of_several_processes_add_up():
    """Each learns from its own samples and what the others send: the same as one that has them all."""
    log_w, p, q = batch()
    expected = sums(Controlled(), log_w, p, q)
    found, sent = [], []

    def total(mine):  # what an all-reduce would give: here the first process waits for nobody
        sent.append(mine)
        return sum(sent)

    for rows in (slice(0, 3), slice(3, 8)):
        whole = Controlled().coefficients(iw.IWAE(), log_w).lesson
        whole.notes.learn, whole.notes.upstream = found.append, torch.ones_like(log_w[0])
        lesson = whole.share(rows, total)
        for listener, slope in zip((lesson.of_p(1), lesson.of_q(1)), (p[rows], q[rows]), strict=True):
            listener(0, slope)
    torch.testing.assert_close(found[1], expected)


def test_the_sums_are_the_location_gradients_of_reparameterized_and_of_what_dreg_adds():
    """g is Reparameterized; g + C_1 is DReG: by autograd through a shift of every datum's location."""
    loc = torch.full((6, 3), 0.3, dtype=DOUBLE, requires_grad=True)
    torch.manual_seed(2)
    noise = torch.randn(4, 6, 3, dtype=DOUBLE)
    z = (loc + 0.7 * noise).detach()
    log_w = (Normal(0.0, 1.0).log_prob(z) - Normal(0.3, 0.7).log_prob(z)).sum(-1)
    found = sums(Controlled(), log_w, -z, -noise / 0.7)
    moving = loc + 0.7 * noise
    value = iw.IWAE()((Normal(0.0, 1.0).log_prob(moving) - Normal(loc, 0.7).log_prob(moving)).sum(-1))
    torch.testing.assert_close(found[0], torch.autograd.grad(value.sum(), loc)[0])
    w = iw.normalized_weights(log_w).unsqueeze(-1)
    torch.testing.assert_close(found[0] + found[1], (w**2 * (-z + noise / 0.7)).sum(0))


def test_each_bound_and_number_of_samples_has_its_own_strengths():
    gradient = Controlled()
    for bound, count in ((iw.IWAE(), 8), (iw.IWAE(), 4), (iw.Renyi(0.5), 8)):
        gradient.observe(bound, *batch(count))
    gradient.update(torch.zeros(1))
    known = [gradient.strengths_for(b, k).tolist() for b, k in ((iw.IWAE(), 8), (iw.IWAE(), 4), (iw.Renyi(0.5), 8))]
    assert len({tuple(k) for k in known}) == 3
    assert gradient.strengths_for(iw.Renyi(0.3), 8).tolist() == [1.0, 0.0]
    assert gradient.explain().count("\n") == 2


def test_state_is_saved_and_restored():
    gradient, other = Controlled(), Controlled()
    for _ in range(3):
        gradient.observe(iw.IWAE(), *batch())
        gradient.update(torch.zeros(1))
    other.load_state_dict(gradient.state_dict())
    assert other.explain() == gradient.explain()
    log_w, p, q = batch()
    for one in (gradient, other):
        one.observe(iw.IWAE(), log_w, p, q)
        one.update(torch.zeros(1))
    assert other.strengths_for(iw.IWAE(), 8).tolist() == gradient.strengths_for(iw.IWAE(), 8).tolist()
    with pytest.raises(ValueError, match="Make the object with basis=2"):
        Controlled(basis=1).load_state_dict(gradient.state_dict())


def test_explain_says_what_is_gained():
    """The second moment at the learned strengths is the least of the three."""
    gradient = Controlled()
    gradient.observe(iw.IWAE(), *batch())
    gradient.update(torch.zeros(1))
    line = gradient.explain()
    assert line.startswith("IWAE(), K = 8: strengths (")
    mine, plain, doubly = (
        float(line.split(word)[1].split()[0].rstrip(","))
        for word in ("location gradient ", "Reparameterized ", "DReG ")
    )
    assert mine < min(plain, doubly)


@pytest.mark.parametrize(("bound", "count"), [(iw.ELBO(), 8), (iw.IWAE(), 1)], ids=["elbo", "K=1"])
def test_control_variates_that_are_multiples_of_each_other(bound, count):
    """c is constant: the second one is the first times a number, and the least variance is reached all the same."""
    log_w, p, q = batch(count, 500)
    one, two = Controlled(basis=1), Controlled()
    for gradient in (one, two):
        gradient.observe(bound, log_w, p, q)
        gradient.update(torch.zeros(1))
    scores = [gradient.coefficients(bound, log_w).score for gradient in (one, two)]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-4, atol=1e-5)


def test_data_that_are_not_finite_teach_nothing():
    clean, dirty = Controlled(), Controlled()
    log_w, p, q = batch(data=150)
    clean.observe(iw.IWAE(), log_w[:, 1:], p[:, 1:], q[:, 1:])
    p[0, 0, 0] = torch.nan
    dirty.observe(iw.IWAE(), log_w, p, q)
    for gradient in (clean, dirty):
        gradient.update(torch.zeros(1))
    torch.testing.assert_close(clean.strengths_for(iw.IWAE(), 8), dirty.strengths_for(iw.IWAE(), 8))


def test_strengths_given_by_hand_learn_nothing():
    gradient = Controlled(strengths=(0.5, -0.8))
    gradient.observe(iw.IWAE(), *batch())
    gradient.update(torch.zeros(1))
    assert gradient.state_dict() == {}
    assert gradient.explain() == "strengths (0.5, -0.8), fixed by hand"


def test_a_bound_is_known_by_class_and_settings():
    """The same words in another process, and no tensor that a random bound drew for one call."""
    assert _described(iw.Renyi(0.5)) == "Renyi(alpha=0.5)"
    assert _described(Own()) == "Own()"
    stopped = [iw.SUMO().stopped_at(torch.tensor([t])) for t in (1, 2)]
    assert _described(stopped[0]) == _described(stopped[1])


def test_the_gate_s_ratio_is_bounded_where_dreg_s_is():
    assert Controlled().bounded_ratio(iw.IWAE()) == iw.IWAE().bounded_ratio
    assert not Controlled().bounded_ratio(iw.EUBO())


class TestRefusals:
    @pytest.mark.parametrize("name", JUMPING)
    def test_bounds_that_jump(self, name):
        with pytest.raises(ValueError, match="smooth = False"):
            Controlled().check(JUMPING[name]())

    def test_basis(self):
        with pytest.raises(ValueError, match="expected basis to be a whole number"):
            Controlled(basis=0)

    def test_decay(self):
        with pytest.raises(ValueError, match=r"decay in \[0, 1\); got 1\.0"):
            Controlled(decay=1.0)

    def test_strengths(self):
        with pytest.raises(ValueError, match="expected 2 strengths, one for each power of c; got 1"):
            Controlled(strengths=(1.0,))
