"""A Pyro model and guide give the log-weights and gradients of the same model written by hand, plate by plate."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import iwbounds as iw
from iwbounds.adapters.pyro import from_pyro
from iwbounds.testing import check_contract
from tests.oracles import eight_schools

pyro = pytest.importorskip("pyro", reason="the adapter needs Pyro: pip install 'iwbounds[pyro]'")
dist = pytest.importorskip("pyro.distributions")
poutine = pytest.importorskip("pyro.poutine")

DOUBLE = torch.float64


def gradients(value, parameters):
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def assert_equal_gradients(one, other):
    for found, expected in zip(one, other, strict=True):
        assert expected.abs().max() > 1e-3, "a gradient that vanishes proves nothing"
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


class TestVAE:
    """Local latents in one data plate: the data are the batch."""

    @pytest.fixture
    def parts(self):
        encoder, decoder = nn.Linear(6, 4, dtype=DOUBLE), nn.Linear(2, 6, dtype=DOUBLE)
        x = torch.rand(5, 6, dtype=DOUBLE).round()

        def model(x):
            pyro.module("decoder", decoder)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=DOUBLE), 1.0).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

        def guide(x):
            pyro.module("encoder", encoder)
            mean, log_scale = encoder(x).chunk(2, -1)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(mean, log_scale.exp()).to_event(1))

        return model, guide, x, encoder, decoder

    @staticmethod
    def by_hand(x, encoder, decoder):
        """The log-joint, the proposal, and given values as samples of the proposal, with their path."""
        normal = torch.distributions.Normal
        mean, log_scale = encoder(x).chunk(2, -1)

        def log_joint(z):
            likelihood = torch.distributions.Bernoulli(logits=decoder(z)).log_prob(x.expand(*z.shape[:-1], 6)).sum(-1)
            return normal(0.0, 1.0).log_prob(z).sum(-1) + likelihood

        def with_path(z):
            return mean + log_scale.exp() * ((z - mean) / log_scale.exp()).detach()

        return log_joint, torch.distributions.Independent(normal(mean, log_scale.exp()), 1), with_path

    @pytest.mark.parametrize("vectorize", [True, False])
    @pytest.mark.parametrize("gradient", [None, iw.Reparameterized(), iw.VIMCO()], ids=repr)
    def test_value_and_gradients_are_those_of_the_model_by_hand(self, parts, gradient, vectorize):
        model, guide, x, encoder, decoder = parts
        log_joint, q = from_pyro(model, guide, x, vectorize=vectorize)
        *mine, with_path = self.by_hand(x, encoder, decoder)
        parameters = [*encoder.parameters(), *decoder.parameters()]
        z = q.sample((3,))
        found = iw.estimate(log_joint, q, gradient=gradient, samples=z)
        expected = iw.estimate(*mine, gradient=gradient, samples=with_path(z["z"].detach()))
        assert found.value.shape == (5,)
        torch.testing.assert_close(found.log_weights, expected.log_weights, rtol=1e-12, atol=1e-12)
        assert_equal_gradients(gradients(found.value.sum(), parameters), gradients(expected.value.sum(), parameters))

    @pytest.mark.parametrize("vectorize", [True, False])
    def test_chunks_give_the_gradient_of_all_samples(self, parts, vectorize):
        model, guide, x, encoder, decoder = parts
        log_joint, q = from_pyro(model, guide, x, vectorize=vectorize)
        found, parameters = [], [*encoder.parameters(), *decoder.parameters()]
        for chunk_size in (None, 2):
            torch.manual_seed(1)
            value = iw.estimate(log_joint, q, num_samples=5, chunk_size=chunk_size).value
            found.append(gradients(value.sum(), parameters))
        assert_equal_gradients(*found)

    def test_the_pair_keeps_its_contract(self, parts):
        model, guide, x, *_ = parts
        check_contract(*from_pyro(model, guide, x), x=x, seed=0)

    def test_training_goes_through_modules_and_evaluate_reports_per_datum(self, parts):
        model, guide, x, encoder, decoder = parts
        optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=0.05)
        before = iw.evaluate(lambda x: from_pyro(model, guide, x), x, num_samples=200, progress=False).log_evidence
        for _ in range(30):
            optimizer.zero_grad()
            iw.accumulate(lambda x: from_pyro(model, guide, x), x, num_samples=4)
            optimizer.step()
        after = iw.evaluate(lambda x: from_pyro(model, guide, x), x, num_samples=200, progress=False).log_evidence
        assert after.shape == (5,)
        assert after.mean() > before.mean() + 0.5


class TestMixture:
    """A discrete site in the data plate, K = 2 and three components: every pair of samples enumerated."""

    PAIRS = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    X = torch.tensor(0.7, dtype=DOUBLE)

    @pytest.fixture
    def parameters(self):
        theta = torch.tensor([0.2, -0.4, 0.9], dtype=DOUBLE, requires_grad=True)
        phi = torch.tensor([0.3, -0.2, 0.5], dtype=DOUBLE, requires_grad=True)
        return theta, phi

    @staticmethod
    def pair(theta, phi):
        def model(x):
            with pyro.plate("data", len(x)):
                c = pyro.sample("c", dist.Categorical(logits=torch.zeros(3, dtype=DOUBLE)))
                pyro.sample("x", dist.Normal(theta[c], 0.8), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("c", dist.Categorical(logits=phi.expand(len(x), 3)))

        return model, guide

    def truth(self, theta, phi):
        log_q = phi.log_softmax(0)
        log_p = -torch.tensor(3.0, dtype=DOUBLE).log() + torch.distributions.Normal(theta, 0.8).log_prob(self.X)
        log_w = (log_p - log_q)[self.PAIRS.T]
        return (log_q[self.PAIRS].sum(1).exp() * iw.IWAE()(log_w)).sum()

    def test_the_expected_gradient_is_that_of_the_expected_bound(self, parameters):
        theta, phi = parameters
        # One datum for each pair of samples: the mean over data, by their probabilities, is the expectation.
        log_joint, q = from_pyro(*self.pair(theta, phi), self.X.expand(9))
        estimate = iw.estimate(log_joint, q, samples={"c": self.PAIRS.T})
        probability = phi.log_softmax(0)[self.PAIRS].sum(1).exp().detach()
        found = gradients((probability * estimate.value).sum(), parameters)
        assert_equal_gradients(found, gradients(self.truth(theta, phi), parameters))

    def test_where_pyros_own_bound_is_wrong(self, parameters):
        """Its coefficient of the score is α/(1−α), that of many samples: 0 for IWAE, whatever the guide."""
        theta, phi = parameters
        model, _ = self.pair(theta, phi)
        expected = [torch.zeros_like(theta), torch.zeros_like(phi)]
        elbo = pyro.infer.RenyiELBO(alpha=0, num_particles=2, vectorize_particles=True, max_plate_nesting=1)
        pyro.param("any", torch.zeros(()))  # without a param site it takes no gradient at all
        for pair in self.PAIRS:
            draws = pair.unsqueeze(-1)  # (particles, data)

            def forced(x, draws=draws):
                pyro.param("any")
                with pyro.plate("data", len(x)):
                    fixed = _Fixed(phi.expand(len(x), 3), draws)
                    pyro.sample("c", fixed)

            theta.grad = phi.grad = None
            elbo.loss_and_grads(model, forced, self.X.expand(1))
            weight = phi.log_softmax(0)[pair].sum().exp().detach()
            for total, parameter in zip(expected, parameters, strict=True):
                total -= weight * (parameter.grad if parameter.grad is not None else 0.0)
        truth = gradients(self.truth(theta, phi), parameters)
        torch.testing.assert_close(expected[0], truth[0], rtol=1e-9, atol=1e-12)  # the model's is right
        assert truth[1].abs().max() > 0.01
        assert expected[1].abs().max() == 0  # the guide's is not


class _Fixed(dist.Categorical):
    """A categorical whose draws are given: expectations by enumeration, not by luck."""

    def __init__(self, logits, draws):
        super().__init__(logits=logits)
        self._draws = draws

    def expand(self, batch_shape, _instance=None):
        return _Fixed(self.logits.expand(*batch_shape, 3), self._draws)

    def sample(self, sample_shape=()):
        return self._draws.expand(self.batch_shape)


class TestMixedSites:
    """A discrete and a continuous local latent, the second drawn given the first."""

    def test_gradients_are_those_of_mixed_latents_by_hand(self):
        x = torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=DOUBLE)
        theta, phi, loc = (
            torch.tensor(v, dtype=DOUBLE, requires_grad=True) for v in ([0.2, 0.7], [0.1, -0.3], [-0.5, 0.9])
        )

        def model():
            with pyro.plate("data", 4):
                c = pyro.sample("c", dist.Categorical(logits=theta))
                z = pyro.sample("z", dist.Normal(theta[c], 1.0))
                pyro.sample("x", dist.Normal(z, 0.5), obs=x)

        def guide():
            with pyro.plate("data", 4):
                c = pyro.sample("c", dist.Categorical(logits=phi))
                pyro.sample("z", dist.Normal(loc[c] + x / 2, 0.7))

        log_joint, q = from_pyro(model, guide)
        assert q.reparameterized == {"c": False, "z": True}

        def log_q(latents):
            c, z = latents["c"], latents["z"]
            return {
                "c": phi.log_softmax(0)[c],
                "z": torch.distributions.Normal(loc[c] + x / 2, 0.7).log_prob(z),
            }

        def log_p(latents):
            c, z = latents["c"], latents["z"]
            normal = torch.distributions.Normal
            return theta.log_softmax(0)[c] + normal(theta[c], 1.0).log_prob(z) + normal(z, 0.5).log_prob(x)

        by_hand = iw.Proposal(q.sample, log_q, reparameterized={"c": False, "z": True})
        found = []
        for pair in ((log_joint, q), (log_p, by_hand)):
            torch.manual_seed(1)  # the same samples, in a graph of their own
            found.append(gradients(iw.estimate(*pair, num_samples=3).value.sum(), [theta, phi, loc]))
        assert_equal_gradients(*found)


class TestPlates:
    """Three documents of four words: what lies in every site's stack is batch, everything else is summed."""

    @staticmethod
    def pair(x, docs, words, glob):
        normal = dist.Normal

        def model():
            g = pyro.sample("g", normal(0.0, 1.0)) if glob else 0.0
            with pyro.plate("docs", x.shape[docs], dim=docs):
                a = pyro.sample("a", normal(g + torch.zeros(()), 1.0))
                with pyro.plate("words", x.shape[words], dim=words):
                    b = pyro.sample("b", normal(a.unsqueeze(-1).expand(*a.shape, 2), 1.0).to_event(1))
                    pyro.sample("x", normal(b.sum(-1), 1.0), obs=x)

        def guide():
            if glob:
                pyro.sample("g", normal(0.1, 1.2))
            with pyro.plate("docs", x.shape[docs], dim=docs):
                pyro.sample("a", normal(0.2, 0.9))
                with pyro.plate("words", x.shape[words], dim=words):
                    pyro.sample("b", normal(0.5 * x.unsqueeze(-1).expand(*x.shape, 2), 0.8).to_event(1))

        return model, guide

    @staticmethod
    def by_hand(x, z, glob):
        """Log-weights (K, docs), or (K,) with a global latent, of x (docs, words), with documents first in z."""
        normal = torch.distributions.Normal
        g = z["g"].unsqueeze(-1) if glob else torch.zeros(())
        a, b = z["a"], z["b"]
        local = normal(g, 1.0).log_prob(a) - normal(0.2, 0.9).log_prob(a)
        word = (normal(a[..., None, None], 1.0).log_prob(b) - normal(0.5 * x[..., None], 0.8).log_prob(b)).sum(-1)
        local = local + (word + normal(b.sum(-1), 1.0).log_prob(x)).sum(-1)
        if not glob:
            return local
        return local.sum(-1) + normal(0.0, 1.0).log_prob(z["g"]) - normal(0.1, 1.2).log_prob(z["g"])

    @pytest.mark.parametrize("vectorize", [True, False])
    @pytest.mark.parametrize("glob", [False, True], ids=["local", "global"])
    @pytest.mark.parametrize("docs", [-2, -1], ids=["outer", "inner"])
    def test_log_weights_are_those_by_hand(self, docs, glob, vectorize):
        words = -3 - docs
        x = torch.randn(3, 4)
        model, guide = self.pair(x if docs == -2 else x.T, docs, words, glob)
        log_joint, q = from_pyro(model, guide, vectorize=vectorize)
        z = q.sample((5,))
        assert q.batch_shape == (() if glob else (3,))
        words_first = docs == -1 and glob  # without batch axes, latents have Pyro's own shape
        z_by_hand = {**z, "a": z["a"].reshape(5, 3), "b": z["b"].movedim(2, 1) if words_first else z["b"]}
        assert z_by_hand["b"].shape == (5, 3, 4, 2)
        found = log_joint(z) - q.log_prob(z)
        torch.testing.assert_close(found, self.by_hand(x, z_by_hand, glob), rtol=1e-5, atol=1e-5)

    def test_one_pass_equals_one_run_for_each_sample(self):
        model, guide = self.pair(torch.randn(3, 4), -2, -1, True)
        together, each = (from_pyro(model, guide, vectorize=v) for v in (True, False))
        z = together[1].sample((5,))
        assert {n: v.shape for n, v in z.items()} == {n: v.shape for n, v in each[1].sample((5,)).items()}
        torch.testing.assert_close(together[0](z), each[0](z))
        torch.testing.assert_close(together[1].log_prob(z), each[1].log_prob(z))

    def test_a_plate_of_one_row_stays_an_axis(self):
        model, guide = self.pair(torch.randn(1, 1), -2, -1, False)
        estimate = iw.estimate(*from_pyro(model, guide), num_samples=3, keep_samples=True)
        assert estimate.value.shape == (1,)
        assert estimate.samples["b"].shape == (3, 1, 1, 2)


class TestMiniBatches:
    """Ten data, three of them drawn."""

    X = torch.linspace(-1, 2, 10, dtype=DOUBLE)

    @pytest.fixture
    def local(self):
        def model():
            with pyro.plate("data", 10, subsample_size=3) as rows:
                z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=DOUBLE), 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=self.X[rows])

        def guide():
            with pyro.plate("data", 10, subsample_size=3) as rows:
                pyro.sample("z", dist.Normal(self.X[rows] / 2, 0.5**0.5))
                drawn.append(rows)

        drawn = []
        return model, guide, drawn

    def test_local_latents_are_rows_without_a_scale(self, local):
        model, guide, drawn = local
        log_joint, q = from_pyro(model, guide)
        rows = drawn[0]
        value = iw.estimate(log_joint, q, num_samples=2).value
        # The guide is the posterior, so that each row's bound is its evidence, exactly.
        torch.testing.assert_close(value, torch.distributions.Normal(0.0, 2**0.5).log_prob(self.X[rows]))
        assert all(torch.equal(rows, again) for again in drawn)  # one mini-batch, whatever is run again
        assert len(drawn) > 2

    def test_where_pyros_own_bound_exceeds_the_evidence(self):
        """One datum of ten, drawn by hand: Pyro takes w to the power of ten before it takes the mean."""
        row = torch.tensor([9])

        def model():
            with pyro.plate("data", 10, subsample=row):
                z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=DOUBLE), 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=self.X[row])

        def guide():
            with pyro.plate("data", 10, subsample=row):
                pyro.sample("z", dist.Normal(torch.zeros((), dtype=DOUBLE), 1.0))

        evidence = torch.distributions.Normal(0.0, 2**0.5).log_prob(self.X[row])
        ours = iw.estimate(*from_pyro(model, guide), num_samples=4000).value
        torch.testing.assert_close(ours, evidence, atol=0.1, rtol=0)
        settings = {"num_particles": 4000, "vectorize_particles": True, "max_plate_nesting": 1}
        pyros = -pyro.infer.RenyiELBO(alpha=0, **settings).loss(model, guide)
        assert pyros > 10 * evidence.item() + 3

    def pair(self, rows):
        loc = torch.tensor(0.4, dtype=DOUBLE, requires_grad=True)

        def model():
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=DOUBLE), 1.0))
            with pyro.plate("data", 10, subsample=rows):
                pyro.sample("x", dist.Normal(z, 1.0), obs=self.X[rows])

        return model, lambda: pyro.sample("z", dist.Normal(loc, 0.4)), loc

    def test_a_scaled_likelihood_is_refused_and_for_the_elbo_unbiased(self):
        *pair, loc = self.pair(torch.tensor([0, 1, 2]))
        with pytest.raises(ValueError, match=r"'x' of the model is scaled by 3\.333.*scaled_likelihood=True"):
            from_pyro(*pair)
        z = {"z": torch.tensor([0.3, 0.9], dtype=DOUBLE)}
        normal = torch.distributions.Normal
        full = normal(0.0, 1.0).log_prob(z["z"]) + normal(z["z"].unsqueeze(-1), 1.0).log_prob(self.X).sum(-1)
        every = []
        for rows in itertools.combinations(range(10), 3):
            model, guide, loc = self.pair(torch.tensor(rows))
            log_joint, q = from_pyro(model, guide, scaled_likelihood=True)
            every.append(log_joint(z).detach())
        torch.testing.assert_close(torch.stack(every).mean(0), full)
        estimate = iw.estimate(log_joint, q, iw.ELBO(), num_samples=4, scaled_likelihood=True)
        assert estimate.direction is iw.Direction.LOWER
        assert gradients(estimate.value, [loc])[0] != 0

    def test_a_scaled_latent_is_refused_whatever_is_said(self):
        def model():
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            with pyro.plate("data", 10, subsample=torch.tensor([0, 1])):
                pyro.sample("z", dist.Normal(mu, 1.0))

        def guide():
            pyro.sample("mu", dist.Normal(0.0, 1.0))
            with pyro.plate("data", 10, subsample=torch.tensor([0, 1])):
                pyro.sample("z", dist.Normal(0.0, 1.0))

        with pytest.raises(ValueError, match="Only the likelihood of global latents may be scaled"):
            from_pyro(model, guide, scaled_likelihood=True)

    def test_a_weight_on_the_kl_term_is_refused(self):
        def model():
            with poutine.scale(scale=0.5):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.3))

        with pytest.raises(ValueError, match=r"'z' of the model is scaled by 0\.5"):
            from_pyro(model, lambda: pyro.sample("z", dist.Normal(0.0, 1.0)))


class TestGuides:
    """Automatic guides are evaluated at given latents; what has no density is refused."""

    @staticmethod
    def model():
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("groups", 3):
            p = pyro.sample("p", dist.Beta(2.0, 2.0))
            weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
            pyro.sample("x", dist.Normal(p * scale + weights[..., 0], 1.0), obs=torch.tensor([0.1, 0.5, -0.2]))

    @staticmethod
    def log_jacobian(z):
        """log |du/dz| of the three transforms, from their definitions: log, logit, stick breaking."""
        p, w = z["p"], z["weights"]
        left = torch.stack([torch.ones_like(p), 1 - w[..., 0]], -1)
        sticks = (1 / w[..., :2] + 1 / (left - w[..., :2])).log().sum(-1)
        return -z["scale"].log() + (sticks - p.log() - (1 - p).log()).sum(-1)

    @pytest.mark.parametrize("vectorize", [True, False])
    @pytest.mark.parametrize("name", ["AutoNormal", "AutoDiagonalNormal", "AutoMultivariateNormal"])
    def test_the_density_of_an_automatic_guide_is_that_of_its_definition(self, name, vectorize):
        guide = getattr(pyro.infer.autoguide, name)(self.model, init_scale=0.3)
        log_joint, q = from_pyro(self.model, guide, vectorize=vectorize)
        for parameter in guide.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        z = q.sample((7,))
        assert {n: tuple(v.shape) for n, v in z.items()} == {"scale": (7,), "p": (7, 3), "weights": (7, 3, 3)}
        biject = torch.distributions.biject_to
        u = {n: biject(s).inv(z[n]) for n, s in (("scale", dist.LogNormal.support), ("p", dist.Beta.support))}
        u["weights"] = biject(torch.distributions.constraints.simplex).inv(z["weights"])
        flat = torch.cat([u["scale"].unsqueeze(-1), u["p"], u["weights"].flatten(1)], -1)
        if name == "AutoNormal":
            scale, loc = ({n: getattr(getattr(guide, k), n) for n in u} for k in ("scales", "locs"))
            log_u = sum(
                torch.distributions.Normal(loc[n], scale[n]).log_prob(u[n]).flatten(1).sum(1)
                if n != "scale"
                else torch.distributions.Normal(loc[n], scale[n]).log_prob(u[n])
                for n in u
            )
        else:
            log_u = guide.get_posterior().log_prob(flat)
        expected = log_u + self.log_jacobian(z)
        torch.testing.assert_close(q.log_prob(z), expected, rtol=1e-4, atol=1e-4)
        value = iw.estimate(log_joint, q, num_samples=4).value
        assert all(g.abs().max() > 0 for g in gradients(value, list(guide.parameters())))

    def test_a_guide_written_with_an_automatic_part(self):
        guide = pyro.infer.autoguide.AutoGuideList(self.model)
        guide.append(pyro.infer.autoguide.AutoNormal(poutine.block(self.model, hide=["p"])))
        guide.append(pyro.infer.autoguide.AutoDiagonalNormal(poutine.block(self.model, expose=["p"])))
        log_joint, q = from_pyro(self.model, guide)
        z = q.sample((4,))
        assert set(z) == {"scale", "p", "weights"}
        assert torch.isfinite(log_joint(z) - q.log_prob(z)).all()

    def test_an_automatic_guide_beside_a_discrete_site_by_hand(self):
        """The density is that of both; the gradient has the score of the one, and the path through the other."""
        logits = torch.tensor([0.3, -0.4, 0.1], requires_grad=True)

        def model():
            c = pyro.sample("c", dist.Categorical(torch.ones(3)))
            scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
            loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(loc + c, scale), obs=torch.tensor(0.7))

        guide = pyro.infer.autoguide.AutoGuideList(model)
        guide.append(lambda: {"c": pyro.sample("c", dist.Categorical(logits=logits))})
        guide.append(pyro.infer.autoguide.AutoDiagonalNormal(poutine.block(model, hide=["c"]), init_scale=0.5))
        log_joint, q = from_pyro(model, guide)
        assert q.reparameterized == {"c": False, "scale": True, "loc": True}
        automatic = guide[1]

        def log_q(z):
            u = torch.stack([z["scale"].log(), z["loc"]], -1)
            continuous = torch.distributions.Normal(automatic.loc, automatic.scale).log_prob(u).sum(-1)
            return {
                "c": logits.log_softmax(0)[z["c"]],
                "scale": continuous - z["scale"].log(),
                "loc": torch.zeros_like(continuous),
            }

        by_hand, found = iw.Proposal(q.sample, log_q, reparameterized=q.reparameterized), []
        for proposal in (q, by_hand):
            torch.manual_seed(1)
            value = iw.estimate(log_joint, proposal, num_samples=4).value
            found.append(gradients(value, [logits, *guide.parameters()]))
        assert min(g.abs().max() for g in found[1]) > 1e-3
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)

    def test_a_point_beside_an_automatic_guide_is_refused(self):
        guide = pyro.infer.autoguide.AutoGuideList(self.model)
        guide.append(pyro.infer.autoguide.AutoNormal(poutine.block(self.model, hide=["p"])))
        guide.append(pyro.infer.autoguide.AutoDelta(poutine.block(self.model, expose=["p"])))
        with pytest.raises(TypeError, match=r"\['p'\] are points"):
            from_pyro(self.model, guide)

    def test_params_of_the_store_train(self):
        def guide():
            loc = pyro.param("loc", torch.tensor(3.0))
            scale = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
            pyro.sample("z", dist.Normal(loc, scale))

        def model():
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

        log_joint, q = from_pyro(model, guide)
        optimizer = torch.optim.Adam([p.unconstrained() for p in pyro.get_param_store().values()], lr=0.1)
        for _ in range(150):
            optimizer.zero_grad()
            (-iw.estimate(log_joint, q, num_samples=8).value).backward()
            optimizer.step()
        # The posterior N(1/2, 1/2); DReG's noise vanishes there.
        assert pyro.param("loc").item() == pytest.approx(0.5, abs=0.02)
        assert pyro.param("scale").item() == pytest.approx(0.5**0.5, abs=0.02)

    def test_a_flow_does_not_take_its_inverse_from_its_cache(self):
        """The score of a flow at a drawn value: with the cached inverse it would be the derivative along the path."""
        flow = dist.transforms.affine_autoregressive(3, hidden_dims=[8])
        base = dist.Normal(torch.zeros(3), 1.0).to_event(1)

        def model():
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))

        def guide():
            pyro.module("flow", flow)
            pyro.sample("z", dist.TransformedDistribution(base, [flow]))

        _, q = from_pyro(model, guide)
        z = q.sample((4,))
        given, clone = ({"z": z["z"].detach().clone().requires_grad_()} for _ in range(2))
        parameters = [*flow.parameters()]
        found = gradients(q.log_prob(z).sum(), [z["z"], *parameters])
        expected = gradients(q.log_prob(clone).sum(), [clone["z"], *parameters])
        flow.clear_cache()
        truth = dist.TransformedDistribution(base, [flow]).log_prob(given["z"]).sum()
        truth = gradients(truth, [given["z"], *parameters])
        assert max(g.abs().max() for g in truth) > 0.1
        torch.testing.assert_close(expected, truth, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[0], truth[0], rtol=1e-4, atol=1e-5)


class TestRefusals:
    @staticmethod
    def model(x=torch.tensor(0.3)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    @pytest.mark.parametrize(
        ("guide", "error", "message"),
        [
            (lambda: None, ValueError, r"it does not draw \['z'\]"),
            (lambda: pyro.sample("z", dist.Delta(torch.tensor(0.1))), TypeError, r"\['z'\] are points \(Delta\)"),
            (
                lambda: (pyro.sample("z", dist.Normal(0.0, 1.0)), pyro.sample("y", dist.Normal(0.0, 1.0))),
                ValueError,
                r"got \['y'\] too.*HierarchicalProposal",
            ),
            (
                lambda: (pyro.sample("z", dist.Normal(0.0, 1.0)), pyro.factor("f", torch.zeros(()), has_rsample=True)),
                ValueError,
                r"got \['f'\] too.*pyro\.factor",
            ),
            (
                lambda: pyro.sample(
                    "z", dist.Normal(pyro.sample("a", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True}), 1.0)
                ),
                TypeError,
                r"auxiliary sites, \['a'\]",
            ),
        ],
    )
    def test_a_guide_that_is_no_density_of_the_latents(self, guide, error, message):
        with pytest.raises(error, match=message):
            from_pyro(self.model, guide)

    @pytest.mark.parametrize("rows", [4, 5])
    def test_axes_that_no_plate_declares(self, rows):
        """Four rows would pass for the axis of four samples."""

        def guide(x):
            pyro.sample("z", dist.Normal(0.0, 1.0))

        with pytest.raises(ValueError, match=rf"'x' to have a log-density of shape \(\).*got \({rows},\).*pyro\.plate"):
            iw.estimate(*from_pyro(self.model, guide, torch.zeros(rows)), num_samples=4)

    def test_axes_counted_from_the_left(self):
        """The data (3,) meet samples that have an axis in front."""

        def model():
            with pyro.plate("data", 3):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[0] + z[1], 1.0), obs=torch.tensor(0.1))

        def guide():
            with pyro.plate("data", 3):
                pyro.sample("z", dist.Normal(0.0, 1.0))

        log_joint, q = from_pyro(model, guide)
        with pytest.raises(ValueError, match=r"of shape \(4, 1\).*got \(4, 3\).*vectorize=False"):
            log_joint(q.sample((4,)))
        log_joint, q = from_pyro(model, guide, vectorize=False)
        assert log_joint(q.sample((4,))).shape == (4,)

    def test_a_model_without_latents(self):
        with pytest.raises(ValueError, match="latent pyro"):
            from_pyro(lambda: pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(())), lambda: None)

    def test_other_latents_than_drawn(self):
        log_joint, _ = from_pyro(self.model, lambda: pyro.sample("z", dist.Normal(0.0, 1.0)))
        with pytest.raises(ValueError, match=r"of shape \(num_samples, \).*got \(2, 100\)"):
            log_joint({"z": torch.zeros(2, 100)})
        with pytest.raises(ValueError, match=r"the parts \['z'\]"):
            log_joint({"z": torch.zeros(2), "tau": torch.zeros(2)})


class TestEightSchools:
    """Global latents and a plate of observations: one evidence, known by quadrature."""

    @staticmethod
    def model():
        y, sigma = (torch.from_numpy(a) for a in (eight_schools.EFFECTS, eight_schools.ERRORS))
        mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=DOUBLE), 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(torch.tensor(5.0, dtype=DOUBLE)))
        with pyro.plate("schools", 8):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    @staticmethod
    def guide():
        """q(τ) by hand, of tails between those of p and p²; μ and θ from their exact conditionals."""
        y, sigma = (torch.from_numpy(a) for a in (eight_schools.EFFECTS, eight_schools.ERRORS))
        tau = pyro.sample("tau", dist.FoldedDistribution(dist.StudentT(torch.tensor(7.0, dtype=DOUBLE), 0.0, 4.0)))
        weight = 1 / (sigma**2 + tau**2)
        keep = tau.dim() > 0  # behind the plate of samples τ has the axes (K, 1)
        precision = 1 / 25 + weight.sum(-1, keepdim=keep)
        mu = pyro.sample("mu", dist.Normal((weight * y).sum(-1, keepdim=keep) / precision, precision**-0.5))
        with pyro.plate("schools", 8):
            precision = sigma**-2 + tau**-2
            pyro.sample("theta", dist.Normal((y / sigma**2 + mu / tau**2) / precision, precision**-0.5))

    def test_the_oracle_agrees_with_the_published_evidence(self):
        assert eight_schools.evidence() == pytest.approx(eight_schools.EVIDENCE, abs=1e-6)

    def test_the_evidence_from_both_sides(self):
        draws = {n: torch.from_numpy(v) for n, v in eight_schools.posterior_draws(4000, seed=0).items()}
        found = iw.sandwich(*from_pyro(self.model, self.guide), draws, num_samples=4000, exact=True)
        # Errors of 0.001, so that 0.01 is ten of them.
        for side in (found.lower, found.upper, found.bridge):
            assert side.value.item() == pytest.approx(eight_schools.EVIDENCE, abs=0.01)
            assert side.standard_error.item() < 0.0015
        assert found.lower.certificate < eight_schools.EVIDENCE < found.upper.certificate
