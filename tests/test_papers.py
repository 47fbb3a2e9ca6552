"""The reproductions: data, networks, schedules, checkpoints, and the exact figures that they hold others against."""

from __future__ import annotations

import dataclasses
import importlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import iwbounds as iw
from tests.oracles.known_weights import lognormal_iwae

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
pytest.importorskip("sklearn", reason="the short forms read scikit-learn's digits")
pytest.importorskip("tqdm", reason="the reproductions show progress: pip install 'iwbounds[examples]'")


@pytest.fixture
def papers(monkeypatch):
    """Import a module of benchmarks/papers by name."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    threads = torch.get_num_threads()
    yield lambda name: importlib.import_module(f"papers.{name}")
    torch.set_num_threads(threads)


@pytest.fixture
def tiny(papers):
    """A few digits, and settings of a tiny network."""
    data = papers("data").load("digits", test_images=20)
    data = dataclasses.replace(data, train=data.train[:60])
    settings = papers("training").Settings(
        "digits", "DReG", 3, batch_size=25, rates=((2, 1e-3), (2, 5e-4)), hidden=8, latent=3
    )
    return data, settings


def packed_archive(path: Path) -> np.ndarray:
    bits = np.random.default_rng(0).integers(0, 2, (30, 784), dtype=np.uint8)
    np.savez(path, train=np.packbits(bits[:20], axis=1), test=np.packbits(bits[20:], axis=1))
    return bits


@pytest.mark.parametrize(("name", "file"), [("binarized", "binarized_mnist.npz"), ("omniglot", "omniglot28.npz")])
def test_packed_bits_are_read_and_test_rows_are_spread(papers, tmp_path, name, file):
    bits = packed_archive(tmp_path / file)
    data = papers("data").load(name, tmp_path, test_images=5)
    assert np.array_equal(data.train.numpy(), bits[:20])
    assert np.array_equal(data.test.numpy(), bits[20::2])
    # A fixed binarisation stays as it is: drawing a pixel of probability 0 or 1 changes nothing.
    batch = torch.cat(list(data.batches(7)))
    assert sorted(map(tuple, batch.tolist())) == sorted(map(tuple, bits[:20].tolist()))


def test_grey_levels_are_probabilities(papers, tmp_path):
    images = np.full((50, 28, 28), 51, dtype=np.uint8)
    np.savez(tmp_path / "mnist.npz", train_images=images, test_images=images[:3])
    data = papers("data").load("mnist", tmp_path)
    assert set(data.test.unique().tolist()) == {0.0, 1.0}
    # 39 200 pixels of probability 0.2: five standard errors are 0.01.
    assert torch.cat(list(data.batches(20))).mean().item() == pytest.approx(0.2, abs=0.01)


def test_a_missing_archive_is_named(papers, tmp_path):
    with pytest.raises(SystemExit, match=r"mnist\.npz is not in .*--folder"):
        papers("data").load("mnist", tmp_path)


def test_the_papers_schedule(papers):
    rates = papers("training").paper_rates()
    assert sum(epochs for epochs, _ in rates) == 3280
    assert [epochs for epochs, _ in rates[:4]] == [1, 3, 9, 27]
    assert rates[0][1] == pytest.approx(1e-3)
    assert rates[-1][1] == pytest.approx(1e-4)


@pytest.mark.parametrize("decay", ["linear", "geometric", "stepped"])
def test_a_short_schedule_goes_from_the_first_rate_to_the_last(papers, decay):
    stages = papers("training").DECAYS[decay](20, 1e-3, 1e-4)
    rates = [rate for epochs, rate in stages for _ in range(epochs)]
    assert len(rates) == 20
    assert (rates[0], rates[-1]) == pytest.approx((1e-3, 1e-4))
    assert rates == sorted(rates, reverse=True)
    halfway = {"linear": 5.5e-4, "geometric": 10**-3.5, "stepped": 1e-3}
    assert (rates[9] + rates[10]) / 2 == pytest.approx(halfway[decay], rel=0.01)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_networks_density_is_that_of_torch_distributions(papers, layers):
    from torch.distributions import Bernoulli, Normal

    torch.manual_seed(0)
    model = papers("models").MODELS[layers](torch.full((12,), 0.3), hidden=6, latent=2).double()
    x = torch.rand(4, 12, dtype=torch.float64).round()
    log_joint, q = model(x)
    z = q.sample((3,))

    def gaussian(network, value, condition):
        mean, log_scale = network(condition).chunk(2, -1)
        return Normal(mean, log_scale.exp()).log_prob(value).sum(-1)

    nearest, farthest = (z, z) if layers == 1 else z
    expected = Normal(0.0, 1.0).log_prob(farthest).sum(-1)
    expected = expected + Bernoulli(logits=model.decoder(nearest)).log_prob(x).sum(-1)
    log_q = gaussian(model.encoder, nearest, x)
    if layers == 2:
        expected = expected + gaussian(model.near_decoder, nearest, farthest)
        log_q = log_q + gaussian(model.far_encoder, farthest, nearest)
    assert torch.allclose(log_joint(z), expected)
    assert torch.allclose(q.log_prob(z), log_q)
    assert [code.shape for code in model.codes(x)] == ([(4, 2)] if layers == 1 else [(4, 4), (4, 2)])


def test_the_decoder_starts_at_the_mean_image(papers):
    model = papers("models").OneLayer(torch.tensor([0.2, 0.9, 0.0]), hidden=4, latent=2)
    at_zero = model.decoder(torch.zeros(2)).sigmoid()
    assert torch.allclose(at_zero, torch.tensor([0.2, 0.9, 0.001]), atol=1e-6)


def test_active_units_are_counted_in_the_variance_over_data(papers):
    model = papers("models").OneLayer(torch.full((3,), 0.5), hidden=4, latent=2)
    code = torch.tensor([[0.0, 0.05], [0.3, 0.0], [0.0, 0.05]])
    model.codes = lambda x: (code, 10 * code)
    assert papers("models").active_units(model, torch.zeros(3, 3)) == [1, 2]


def test_an_interrupted_run_ends_as_the_one_that_was_not(papers, tiny, tmp_path):
    data, settings = tiny
    train = papers("training").train
    whole = train(settings, data, tmp_path / "whole")
    for epochs in range(1, 4):
        stopped = train(settings, data, tmp_path / "parts", max_seconds=0)
        assert len(stopped.curve) == epochs
    resumed = train(settings, data, tmp_path / "parts")
    assert resumed.curve == whole.curve
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    # a finished run is read, not trained again
    assert train(settings, data, tmp_path / "parts").seconds == resumed.seconds


def test_a_checkpoint_of_other_settings_is_refused(papers, tiny, tmp_path):
    data, settings = tiny
    train = papers("training").train
    train(settings, data, tmp_path, max_seconds=0)
    other = dataclasses.replace(settings, samples=4)
    (tmp_path / settings.checkpoint).rename(tmp_path / other.checkpoint)
    with pytest.raises(SystemExit, match="expected a checkpoint of"):
        train(other, data, tmp_path)


def test_a_switch_shares_what_comes_before_it_and_changes_the_objective_after(papers, tiny, tmp_path):
    data, settings = tiny
    train = papers("training").train
    switched = dataclasses.replace(settings, then="VAE", then_rates=((1, 1e-3),))
    control = dataclasses.replace(settings, then="DReG", then_rates=((1, 1e-3),))
    assert [name for name, _ in switched.plan()] == ["DReG"] * 4 + ["VAE"]
    first, second = train(switched, data, tmp_path), train(control, data, tmp_path)
    assert first.curve[:4] == second.curve[:4]
    # The ELBO of the same networks is below their IWAE, from the same noise.
    assert first.curve[4] < second.curve[4]
    assert (tmp_path / settings.checkpoint).exists()


def test_the_callers_random_state_is_left_alone(papers, tiny, tmp_path):
    before = torch.get_rng_state()
    papers("training").train(tiny[1], tiny[0], tmp_path, max_seconds=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_table1_as_a_command_says_what_it_found_and_keeps_it(papers, tmp_path, capsys):
    options = ["--data", "digits", "--epochs", "1", "--hidden", "8", "--latent", "2", "--evaluation-samples", "20"]
    where = ["--checkpoints", str(tmp_path / "c"), "--results", str(tmp_path / "r.json"), "--threads", "1"]
    assert papers("table1").main([*options, *where, "--test-images", "30"])
    printed = capsys.readouterr().out
    kept = importlib.import_module("json").loads((tmp_path / "r.json").read_text())
    form = "seed0-epochs-1-hidden-8-latent-2"
    assert sorted(kept) == [f"digits-1-DReG-5-{form}", f"digits-1-IWAE-5-{form}", f"digits-1-VAE-1-{form}"]
    for found in kept.values():
        assert f"{found['nll']:.2f} ± {found['standard_error']:.2f}" in printed
        assert 25 < found["nll"] < 64 * math.log(2) + 1
        assert found["settings"]["seed"] == 0


def test_curves_are_drawn_from_what_table1_keeps(papers, tiny, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the figure is matplotlib's: pip install 'iwbounds[examples]'")
    training, curves = papers("training"), papers("curves")
    data, settings = tiny
    found = training.measure(training.train(settings, data, tmp_path), data, 20)
    assert len(found["curve"]) == 4
    assert found["curve"][-1] == pytest.approx(found["last_training_bound"], abs=0.006)
    training.keep({"tiny": found}, tmp_path / "r.json")
    curves.main(["tiny", "--results", str(tmp_path / "r.json"), "--out", str(tmp_path / "c.png")])
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert curves.label(found) == f"DReG, K = 3, batches of 25: {found['nll']:.2f}"


def test_table1_names_its_results_by_form(papers):
    table1 = papers("table1")

    def names(*options):
        options = table1.parse(options)
        return [table1.key(settings, options) for settings in table1.runs(options)]

    usual = names()
    assert usual[0] == "binarized-1-VAE-1-seed0"
    forms = [
        usual,
        names("--decay", "geometric"),
        names("--first-rate", "0.002"),
        names("--full"),
        names("--epochs", "9"),
    ]
    forms += [names("--full", "--stages", "6"), names("--batch-size", "20"), names("--epsilon", "1e-8")]
    assert len({name for form in forms for name in form}) == sum(map(len, forms))
    # what is spelt out and is the default has the default's name
    assert names("--decay", "linear", "--objectives", "IWAE", "--samples", "5") == [usual[1]]


def test_a_learned_priors_gradient_needs_two_layers(papers, capsys):
    parse, runs = papers("table1").parse, papers("table1").runs
    both = runs(parse(["--layers", "2", "--samples", "5"]))
    assert [settings.objective for settings in both] == ["VAE", "IWAE", "DReG", "GDReG"]
    with pytest.raises(SystemExit):
        parse(["--objectives", "GDReG", "--samples", "5"])
    assert "With one layer it is DReG" in capsys.readouterr().err


def test_table1_expects_what_the_reference_found(papers):
    def results(vae, iwae, dreg):
        found = zip((("VAE", 1), ("IWAE", 5), ("DReG", 5)), (vae, iwae, dreg), strict=True)
        return {str(key): {"settings": {"objective": key[0], "samples": key[1]}, "nll": nll} for key, nll in found}

    expected = papers("table1").expected
    assert all(f.ok for f in expected(results(98.0, 96.9, 96.3)))
    for off in ((99.6, 96.9, 96.3), (98.0, 95.4, 95.0), (98.0, 96.9, 97.2), (97.5, 97.2, 97.0)):
        assert not all(f.ok for f in expected(results(*off)))


def test_a_figure_that_is_not_a_number_is_not_as_expected(papers):
    assert not papers("expected").Figure.near("nll", math.nan, 0.0, 1e9).ok


def test_jackknife_expectation_is_the_lognormals(papers):
    weights = papers("jackknife").lognormal(1.0)
    for count in (1, 5, 16, 64):
        assert weights.iwae(count) == pytest.approx(lognormal_iwae(1.0, count), abs=1e-9)
    assert weights.iwae(1) == pytest.approx(-0.5, abs=1e-9)


def test_jackknife_expectation_of_two_atoms_is_the_enumeration(papers):
    log_w = np.log([0.5, 2.0])
    weights = papers("jackknife").Weights(log_w)
    both = np.log([[w1 + w2 for w1 in (0.4, 1.6)] for w2 in (0.4, 1.6)]).mean() - math.log(2)
    assert weights.iwae(2) == pytest.approx(both, abs=1e-10)
    assert weights.bias(2, 1) == pytest.approx(2 * both - np.log([0.4, 1.6]).mean(), abs=1e-10)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_jackknife_slopes_of_lognormal_weights(papers, order):
    assert papers("jackknife").lognormal(0.25).slope((16, 32, 64), order) == pytest.approx(-1 - order, abs=0.15)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_jackknife_itself_has_the_expectation_of_the_integral(papers, order):
    """20 000 draws of eight; 4.5 standard errors: a false alarm once in 150 000 seeds, and the seed is fixed."""
    assert abs(papers("jackknife").monte_carlo_z(papers("jackknife").lognormal(1.0), order, draws=20_000)) < 4.5


def test_switch_holds_each_change_against_a_control(papers):
    def result(nll, units):
        return [{"nll": nll, "active_units": [units]}] * 2

    as_paper = {
        ("VAE", "VAE"): result(23.0, 8),
        ("VAE", "IWAE"): result(22.5, 18),
        ("IWAE", "IWAE"): result(22.4, 20),
        ("IWAE", "VAE"): result(22.8, 12),
    }
    expected = papers("switch").expected
    assert all(f.ok for f in expected(as_paper))
    for order in (("VAE", "IWAE"), ("IWAE", "VAE")):
        unchanged = as_paper | {order: as_paper[(order[0], order[0])]}
        assert [f.ok for f in expected(unchanged)].count(False) == 2


def test_bounds_of_two_layers_are_ordered_and_trained_by_every_gradient(papers):
    torch.manual_seed(0)
    model = papers("models").TwoLayers(torch.full((12,), 0.3), hidden=6, latent=2)
    x = torch.rand(5, 12).round()
    for bound, gradient in papers("training").OBJECTIVES.values():
        model.zero_grad()
        iw.estimate(*model(x), bound, gradient, num_samples=4).value.sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


def test_hoeffdings_terms_of_two_exponential_weights(papers):
    """ζ_2 is the variance of log of a Gamma(2), the trigamma function; ζ_1 by Monte Carlo of two pairs that share one.

    200 000 quadruples: the covariance is known to 0.3 % of ζ_2, a standard error.
    """
    variance = papers("u_variance").projection_variance
    assert variance(2, 2) == pytest.approx(math.pi**2 / 6 - 1, abs=1e-9)
    w = -torch.rand(3, 200_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).log()
    shared = torch.stack([(w[0] + w[1]).log(), (w[0] + w[2]).log()])
    assert variance(2, 1) == pytest.approx(shared.cov()[0, 1].item(), abs=0.01)


def test_u_statistics_have_the_variance_that_hoeffding_gives(papers):
    module = papers("u_variance")
    # 10 000 correlated pairs of variances: their ratio is known to about 1.5 %.
    found = module.measured_ratio(module.exponential(8, 10_000), 2).item()
    assert found == pytest.approx(module.exact_ratio(8, 2), rel=0.06)
    assert 0.8 < module.exact_ratio(8, 2) < 0.95
    assert module.exact_ratio(2, 2) == pytest.approx(1.0, abs=1e-9)


def test_renyi_keeps_the_signal_that_iwae_loses(papers):
    """Two thousand replications leave ±0.15 of a slope between K = 16 and 256."""
    module = papers("renyi_snr")
    problem = module.Problem.draw(5, 0.2)
    slopes = {}
    for alpha in (0.0, 0.5):
        curves = [module.measure(problem, alpha, k, 1000) for k in (16, 256)]
        slopes[alpha] = math.log(curves[1]["reparameterised"] / curves[0]["reparameterised"]) / math.log(16)
    assert slopes[0.0] == pytest.approx(-0.5, abs=0.25)
    assert slopes[0.5] == pytest.approx(0.5, abs=0.25)


def test_peers_are_held_against_exact_gradients(papers):
    """By quadrature alone: squared weights are right for the proposal, wrong for the model; ours are right for both."""
    correctness = importlib.import_module("peers.correctness")
    verdicts = {row.side: row.off <= correctness.LIMIT for row in correctness.gaussian_rows()}
    assert verdicts == {
        "proposal, iw.DReG()": True,
        "model, iw.DReG()": True,
        "proposal, squared weights": True,
        "model, squared weights": False,
    }


def test_the_exact_discrete_gradient_is_the_slope_of_the_sum(papers, monkeypatch):
    """At K = 1 the bound is the ELBO, whose gradient of the logits is q (log w − ELBO)."""
    correctness = importlib.import_module("peers.correctness")
    q = correctness.LOGITS.softmax(0)
    log_w = correctness.LOG_JOINT - q.log()
    expected = q * (log_w - (q * log_w).sum())
    assert torch.allclose(correctness.exact_discrete_gradient(0.0, 1), expected)


def test_two_layers_draw_from_the_density_that_they_state(papers):
    """Standardised by their own means and scales, 40 000 draws of each unit have mean 0 and variance 1.

    Six units: each mean within 5/√40 000 = 0.025, each variance within 5·√(2/40 000) = 0.036; a false alarm once in
    100 000 seeds.
    """
    torch.manual_seed(0)
    model = papers("models").TwoLayers(torch.full((4,), 0.3), hidden=6, latent=2)
    x = torch.ones(1, 4)
    near, far = model(x)[1].sample((40_000,))
    for code, network, condition in ((near, model.encoder, x), (far, model.far_encoder, near)):
        mean, log_scale = network(condition).chunk(2, -1)
        standard = ((code - mean) / log_scale.exp()).flatten(0, 1)
        assert standard.mean(0).abs().max() < 0.025
        assert (standard.var(0) - 1).abs().max() < 0.036


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("jackknife", ["--images", "3", "--atoms", "100", "--draws", "2000", "--epochs", "1", "--out"]),
        ("u_variance", ["--images", "3", "--image-draws", "50", "--epochs", "1", "--draws", "5000", "--count", "4"]),
        ("switch", ["--seeds", "0", "--epochs", "1", "--samples", "2", "--evaluation-samples", "5", "--hidden", "5"]),
    ],
)
def test_each_script_trains_what_it_lacks_and_keeps_what_it_finds(papers, tmp_path, name, options, capsys):
    """Whether figures of so short a form are as expected is no matter; that they are judged is."""
    options = [*options, str(tmp_path / "figure.png")] if name == "jackknife" else options
    options = [*options, "--sizes", "2"] if name == "u_variance" else options
    where = ["--checkpoints", str(tmp_path / "c"), "--results", str(tmp_path / "r.json"), "--threads", "1"]
    found = papers(name).main([*options, *where])
    printed = capsys.readouterr().out
    assert ("NO" not in printed.split("as expected")[1]) == found
    assert (tmp_path / "r.json").stat().st_size > 100
    assert list((tmp_path / "c").glob("digits-1-*.pt"))
