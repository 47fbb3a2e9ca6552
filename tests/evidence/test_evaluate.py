"""The evaluation loop: every datum and sample once, the same numbers however they are cut, and honest refusals."""

import json
import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Normal
from torch.utils.data import DataLoader, TensorDataset

import iwbounds as iw
from iwbounds.evidence import evaluate as evaluate_function
from iwbounds.evidence import progress as progress_module
from tests.evidence.test_certify import dependent

DATA = torch.randn(230, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * math.sqrt(2)
TRUTH = Normal(0.0 * DATA, math.sqrt(2)).log_prob(DATA)  # of float64 parameters


def model(x, scale=0.9):
    """z ~ N(0, 1), x | z ~ N(z, 1); the exact posterior has a standard deviation of 0.707."""
    return lambda z: Normal(0.0, 1.0).log_prob(z) + Normal(z, 1.0).log_prob(x), Normal(x / 2, scale)


def exact(x):
    """Every weight is p(x): a datum left out, counted twice or mixed with others shows in any number of samples."""
    return model(x, math.sqrt(0.5))


def evaluate(data=DATA, model=model, **options):
    options = {"num_samples": 300, "seed": 7, "progress": False} | options
    return iw.evaluate(model, data, **options)


def assert_same(first, second):
    """Reports equal to 1e-9 in every number."""
    mine, theirs = first.to_dict(), second.to_dict()
    for name in ("index", "log_evidence", "ess", "pareto_k"):
        assert mine["data"][name] == pytest.approx(theirs["data"][name], rel=1e-9, abs=1e-9, nan_ok=True)
    for name in ("nll", "standard_error", "sampling_error", "certified_nll"):
        assert mine[name] is theirs[name] is None or mine[name] == pytest.approx(
            theirs[name], rel=1e-9, abs=1e-9, nan_ok=True
        ), name
    for name in ("num_data", "num_samples", "num_dead", "num_nonfinite", "num_untrusted", "bound", "direction"):
        assert mine[name] == theirs[name], name
    assert torch.equal(first.dead_weights, second.dead_weights)
    assert first.draws == second.draws or first.num_samples == second.num_samples


def test_finds_the_evidence_of_every_datum():
    """300 samples with an ESS near 270: 230 standard errors of about 0.02; the largest of them is below 5 of them."""
    report = evaluate()
    assert (report.log_evidence - TRUTH).abs().max() < 5 * (1 / report.ess - 1 / 300).sqrt().max()
    assert report.nll == pytest.approx(-TRUTH.mean().item(), abs=5 * report.sampling_error)
    assert report.standard_error == pytest.approx(TRUTH.std().item() / 230**0.5, rel=0.05)
    assert report.certified_nll == pytest.approx(report.nll + math.log(100) / 230, abs=1e-12)
    assert report.worst(1)[0][0] == int(TRUTH.argmin())


@pytest.mark.slow
def test_the_sampling_error_is_that_of_repeated_evaluations():
    """The sd of 200 NLLs has a relative standard error of 5 %: within 20 % with a false-fail rate of 6e-5."""
    reports = [evaluate(DATA[:20], seed=seed) for seed in range(200)]
    found = torch.tensor([r.nll for r in reports], dtype=torch.float64).std().item()
    predicted = sum(r.sampling_error for r in reports) / 200
    assert found == pytest.approx(predicted, rel=0.2)


@pytest.mark.parametrize("num_samples", [1, 49, 50, 51, 1037])
def test_draws_exactly_as_many_samples_of_every_datum(num_samples):
    """Trap 11: a normaliser of ceil(n/c)·c samples, a remainder dropped, a batch summed inside the log-sum-exp."""
    drawn = torch.zeros(230, dtype=torch.int64)

    def counting(x):
        log_joint, q = exact(x)
        rows = torch.isin(DATA, x)

        def counted(z):
            assert len(z) <= 7, "more in memory than chunk_size allows"
            drawn[rows] += len(z)
            return log_joint(z)

        return counted, q

    report = evaluate(model=counting, num_samples=num_samples, chunk_size=7)
    assert (drawn == num_samples).all()
    assert report.num_samples == num_samples
    torch.testing.assert_close(report.log_evidence, TRUTH, rtol=0, atol=1e-12)
    torch.testing.assert_close(report.ess, torch.full_like(TRUTH, num_samples), rtol=1e-12, atol=0)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [100, 230, 64, 1])
def test_a_loader_with_workers_and_an_uneven_last_batch_counts_every_datum_once(workers, size):
    data = DATA if size > 1 else DATA[:9]
    loader = DataLoader(TensorDataset(data), batch_size=size, num_workers=workers)
    report = evaluate(loader, exact, num_samples=3)
    torch.testing.assert_close(report.log_evidence, TRUTH[: len(data)], rtol=0, atol=1e-12)
    assert report.index.tolist() == list(range(len(data)))


def test_a_loader_in_batches_of_a_hundred_gives_the_report_of_the_tensor():
    assert_same(evaluate(DataLoader(TensorDataset(DATA), batch_size=100)), evaluate())
    assert_same(evaluate(list(DATA.split(100))), evaluate())


@pytest.mark.parametrize("bound", [iw.ELBO(), iw.Jackknife(1), iw.MIWAE(10), iw.Renyi(0.5), iw.CUBO(2)])
def test_other_bounds_are_of_all_weights_at_once(bound):
    seen = []

    def watched(x):
        log_joint, q = model(x)

        def log_w(z):
            seen.append(log_joint(z) - q.log_prob(z))
            return log_joint(z)

        return log_w, q

    report = evaluate(DATA[:40], watched, bound=bound, num_samples=300)
    torch.testing.assert_close(report.log_evidence, bound(torch.cat(seen)), rtol=0, atol=1e-9)
    torch.testing.assert_close(report.pareto_k, iw.pareto_k(torch.cat(seen)), rtol=0, atol=1e-9)
    torch.testing.assert_close(report.ess, iw.effective_sample_size(torch.cat(seen)))
    assert report.direction is bound.direction


def test_structures_of_data_and_latents():
    def paired(x):
        log_joint, q = exact(x["x"] if isinstance(x, dict) else x[0])
        wrapped = iw.Proposal(lambda shape: {"z": q.rsample(shape)}, lambda z: q.log_prob(z["z"]))
        return lambda z: log_joint(z["z"]), wrapped

    for data in ({"x": DATA, "y": DATA}, (DATA, DATA), [(DATA[:150], DATA[:150]), (DATA[150:], DATA[150:])]):
        report = evaluate(data, paired, num_samples=30, chunk_size=11)
        torch.testing.assert_close(report.log_evidence, TRUTH, rtol=0, atol=1e-12)


def test_a_hierarchical_proposal_is_evaluated_in_whole_blocks():
    def hierarchical(x):
        log_joint, _ = model(x)
        q = iw.HierarchicalProposal(
            Normal(x / 2, 0.3), lambda psi: Normal(psi, 0.8), num_aux=8, reverse=lambda z: Normal((z + x) / 2, 0.4)
        )
        return log_joint, q

    found = [evaluate(DATA[:30], hierarchical, chunk_size=c, num_samples=600) for c in (None, 5)]
    assert_same(*found)
    assert (found[0].log_evidence - TRUTH[:30]).abs().max() < 0.3


class StoppedError(Exception):
    pass


def breaking(after, count, failure=StoppedError):
    """The model, until log_joint has been called so many times; ``count`` collects the samples of all calls."""

    def build(x):
        log_joint, q = model(x)

        def log_joint_that_breaks(z):
            if len(count) >= after:
                raise failure
            count.append(len(z))
            return log_joint(z)

        return log_joint_that_breaks, q

    return build


@pytest.mark.slow
def test_a_hundred_thousand_samples_in_any_chunking_order_and_merge():
    whole = evaluate(DATA[:3], num_samples=100_000)
    assert_same(evaluate(DATA[:3], num_samples=100_000, chunk_size=83), whole)
    parts = [
        evaluate(DATA[:3], num_samples=count, first_sample=first)
        for first, count in ((0, 40_000), (40_000, 27_000), (67_000, 33_000))
    ]
    assert_same(parts[2].merge(parts[0], parts[1]), whole)
    assert_same(parts[0] + parts[1] + parts[2], whole)


@pytest.mark.slow
def test_a_hundred_thousand_samples_interrupted_resumed_and_merged_from_two_processes(tmp_path):
    """The first process draws 60 000 samples, and is stopped on the way; the second one the others."""
    script = """
import sys, torch
from tests.evidence.test_evaluate import DATA, StoppedError, breaking, evaluate, model
first, count, stops, path = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
torch.manual_seed(first)
options = {"num_samples": count, "first_sample": first, "state_file": path + ".state"}
try:
    evaluate(DATA[:3], breaking(stops, []), **options)
except StoppedError:
    assert stops == 17
evaluate(DATA[:3], model, chunk_size=83 + first // 100, **options).save(path)
"""
    arguments = [("0", "60000", "17", str(tmp_path / "a.pt")), ("60000", "40000", "10000", str(tmp_path / "b.pt"))]
    running = [subprocess.Popen([sys.executable, "-c", script, *a]) for a in arguments]
    assert [process.wait() for process in running] == [0, 0]
    first, second = (iw.EvidenceReport.load(a[-1]) for a in arguments)
    assert_same(second + first, evaluate(DATA[:3], num_samples=100_000))


@pytest.mark.parametrize("chunk_size", [1, 7, 50, 10_000])
def test_chunks_of_any_size_give_the_same_report(chunk_size):
    assert_same(evaluate(DATA[:120], num_samples=120, chunk_size=chunk_size), evaluate(DATA[:120], num_samples=120))


def test_halves_of_the_data_merge_in_any_order():
    whole = evaluate()
    first, second = evaluate(DATA[:100]), evaluate(DATA[100:], first_datum=100)
    assert_same(first + second, whole)
    assert_same(second.merge(first), whole)


@pytest.mark.slow
def test_two_processes_merge(tmp_path):
    script = """
import sys, torch, iwbounds as iw
from tests.evidence.test_evaluate import DATA, evaluate
first, stop, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.manual_seed(first)
evaluate(DATA[first:stop], first_datum=first).save(path)
"""
    paths = [tmp_path / "a.pt", tmp_path / "b.pt"]
    ranges = [("0", "100"), ("100", "230")]
    running = [subprocess.Popen([sys.executable, "-c", script, *r, str(p)]) for r, p in zip(ranges, paths, strict=True)]
    assert [process.wait() for process in running] == [0, 0]
    parts = [iw.EvidenceReport.load(path) for path in paths]
    assert_same(parts[1] + parts[0], evaluate())


@pytest.mark.slow
@pytest.mark.parametrize("failure", [StoppedError, KeyboardInterrupt])
@pytest.mark.parametrize("after", [0, 1, 8, 13])
def test_goes_on_where_it_was_interrupted(after, failure, tmp_path):
    path, counts = tmp_path / "deep" / "state.pt", []
    with pytest.raises(failure):
        evaluate(model=breaking(after, counts, failure), state_file=path)
    with pytest.raises(ValueError, match="the evaluation stopped early"):
        iw.EvidenceReport.load(path)
    rest = []
    report = evaluate(model=breaking(10**6, rest), state_file=path, seed=7, chunk_size=10)
    assert_same(report, evaluate())
    whole = []
    evaluate(model=breaking(10**6, whole))
    # Nothing is evaluated a second time: the calls are of 50 samples of 100 data, 166 (of 30 data) at last.
    assert sum(counts) + sum(rest) == sum(whole)
    assert [p.name for p in path.parent.iterdir()] == ["state.pt"]
    # A finished file gives its report without a call.
    assert_same(evaluate(model=breaking(0, []), state_file=path), report)
    assert_same(iw.EvidenceReport.load(path), report)


def test_an_interruption_with_another_bound_loses_no_more_than_a_batch(tmp_path):
    bound, path = iw.ELBO(), tmp_path / "state.pt"
    with pytest.raises(StoppedError):
        evaluate(model=breaking(9, []), state_file=path, bound=bound)
    rest = []
    report = evaluate(model=breaking(10**6, rest), state_file=path, bound=bound)
    assert_same(report, evaluate(bound=bound))
    assert sum(rest) == 600


def test_a_state_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "state.pt"
    evaluate(DATA[:100], state_file=path)
    for wrong in ({"seed": 8}, {"num_samples": 301}, {"bound": iw.ELBO()}):
        with pytest.raises(ValueError, match=f"of another {next(iter(wrong))}"):
            evaluate(DATA[:100], state_file=path, **wrong)
    with pytest.raises(ValueError, match=r"data from index 0 on .* \(no shuffling\)"):
        evaluate(DATA[:100].flip(0), state_file=path)
    evaluate(DATA[:200], state_file=tmp_path / "more.pt")
    with pytest.raises(ValueError, match="also holds those from index 100 on"):
        evaluate(DATA[:100], state_file=tmp_path / "more.pt")
    with pytest.raises(ValueError, match="of another model"):
        evaluate(DATA[:100], Trained(), state_file=path)
    with pytest.raises(StoppedError):
        evaluate(model=breaking(8, []), state_file=tmp_path / "partial.pt")
    with pytest.raises(ValueError, match=r"data from index 100 on"):
        evaluate(torch.cat([DATA[:100], DATA[100:].flip(0)]), state_file=tmp_path / "partial.pt")
    # Without a seed of its own, a call takes that of the file.
    assert evaluate(DATA[:100], state_file=path, seed=None).seed == 7


def test_the_global_random_state_is_left_alone_and_does_not_matter():
    before = torch.get_rng_state()
    first = evaluate(DATA[:20])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    assert_same(evaluate(DATA[:20]), first)


def test_without_a_seed_each_call_has_its_own_and_reports_it():
    torch.manual_seed(0)
    first = evaluate(DATA[:20], seed=None)
    torch.manual_seed(0)
    second = evaluate(DATA[:20], seed=None)
    assert first.nll != second.nll
    assert_same(evaluate(DATA[:20], seed=first.seed), first)


def shared_draws(x):
    log_joint, _ = model(x)
    q = iw.Proposal(
        lambda shape: torch.randn(*shape, 1, dtype=x.dtype).expand(*shape, len(x)),
        Normal(torch.zeros_like(x), 1.0).log_prob,
    )
    return log_joint, q


def dependent_draws(x):
    log_joint, q = model(x)
    return log_joint, dependent(q)


def nan_in_one(x):
    log_joint, q = model(x)
    return lambda z: torch.where(x == DATA[17], torch.nan, log_joint(z)), q


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"bound": iw.Jackknife(1)}, r"Jackknife\(order=1\) is not a lower bound \(direction none\)"),
        ({"bound": iw.CUBO(2)}, "is not a lower bound"),
        ({"bound": iw.EUBO()}, "is not a lower bound"),
        ({"model": dependent_draws}, "depend on each other"),
        ({"model": shared_draws}, "share their draws"),
        ({"model": nan_in_one}, "1 data have weights that are NaN"),
    ],
)
def test_nothing_is_certified_that_theory_does_not_cover(options, reason):
    report = evaluate(DATA[:40], **options)
    assert report.certified_nll is None
    with pytest.raises(ValueError, match=reason):
        report.require_certificate()
    assert "nothing: " in str(report)
    assert report.to_dict()["certified_nll"] is None


def test_shared_draws_are_remembered_over_an_interruption(tmp_path):
    def build(after, count):
        def broken(x):
            return breaking(after, count)(x)[0], shared_draws(x)[1]

        return broken

    with pytest.raises(StoppedError):
        evaluate(DATA[:40], build(2, []), state_file=tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt")
    assert state["partial"]["shared"]
    # As if the last part had been drawn alone: what was seen before must still count.
    report = evaluate(DATA[:40], state_file=tmp_path / "state.pt")
    assert report.certified_nll is None


def test_a_refusal_survives_a_merge():
    report = evaluate(DATA[:100]) + evaluate(DATA[100:], dependent_draws, first_datum=100)
    assert report.certified_nll is None


def test_a_certificate_rests_on_the_weights_not_on_what_a_bound_claims_of_itself():
    class Boastful(iw.Bound):
        direction = iw.Direction.LOWER

        def __call__(self, log_w):
            return log_w.amax(0)

    report, honest = evaluate(bound=Boastful()), evaluate()
    assert report.nll < honest.nll
    assert report.certified_nll == pytest.approx(honest.certified_nll)
    assert evaluate(bound=iw.ELBO()).certified_nll > honest.certified_nll


def test_discrete_latents_that_coincide_are_not_taken_for_shared_ones():
    def discrete(x):
        q = Categorical(logits=torch.zeros(len(x), 2, dtype=x.dtype) + torch.tensor([20.0, 0.0], dtype=x.dtype))
        return lambda z: q.log_prob(z) - 1.0, q

    assert evaluate(DATA[:5], discrete, num_samples=20).certified_nll == pytest.approx(1 + math.log(100) / 5)


def test_nan_stays_in_its_datum_and_is_counted():
    report = evaluate(model=nan_in_one)
    assert report.num_nonfinite == 1
    assert math.isnan(report.nll)
    assert report.worst(1)[0][0] == 17
    others = torch.arange(230) != 17
    assert torch.equal(report.log_evidence[others], evaluate().log_evidence[others])


def test_dead_data_and_dead_weights_are_counted():
    def half_dead(x):
        log_joint, q = model(x)
        floor = torch.where(x == DATA[3], -torch.inf, 0.0)
        return lambda z: torch.where(z < x / 2, -torch.inf, log_joint(z)) + floor, q

    report = evaluate(DATA[:50], half_dead, num_samples=400)
    assert report.num_dead == 1
    assert report.log_evidence[3] == -torch.inf
    assert report.certified_nll == math.inf
    # 49 · 400 fair coins: within 5 standard errors of 70.
    assert abs(report.dead_weights.sum().item() - 400 - 49 * 200) < 350


class Trained(nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.shift = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        return model(self.dropout(x) + self.shift)


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"Dropout 'dropout' is in training mode.*model.eval\(\)"):
        evaluate(model=Trained())
    assert evaluate(model=Trained().eval()).num_data == 230


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, "at least 1; got 0"),
        ({"chunk_size": 0}, ValueError, "at least 1; got 300 and 0"),
        ({"confidence": 1.0}, ValueError, r"confidence in \(0, 1\)"),
        ({"first_datum": -1}, ValueError, "first_datum and first_sample >= 0"),
        ({"first_sample": 30}, ValueError, "multiple of 50.*got 30. Take 50"),
        ({"first_sample": 50, "bound": iw.ELBO()}, ValueError, "only samples of IWAE can be merged"),
        ({"bound": iw.Jackknife(3), "num_samples": 3}, ValueError, "needs at least 4 samples"),
        ({"data": []}, ValueError, "at least one datum"),
        ({"data": 3}, TypeError, "got int"),
        ({"data": (DATA, DATA[:9])}, ValueError, "share their first axis"),
        ({"model": lambda x: model(x[0])}, ValueError, r"batch shape \(100,\).*got \(\)"),
    ],
)
def test_mistakes_are_named_before_any_number(options, error, message):
    with pytest.raises(error, match=message):
        evaluate(**options)


def test_reports_that_do_not_belong_together_do_not_merge():
    first = evaluate(DATA[:100])
    for other, message in (
        (evaluate(DATA[100:200]), "the two reports differ in their values"),
        (evaluate(DATA[:100]), "hold samples of seed 7 that are the same"),
        (evaluate(DATA[50:150], first_datum=50), "50 of 100 are in both"),
        (evaluate(DATA[100:], first_datum=100, num_samples=10), "the same number of samples"),
        (evaluate(DATA[:100], confidence=0.9), "one confidence"),
        (evaluate(DATA[:100], bound=iw.ELBO()), "one bound"),
    ):
        with pytest.raises(ValueError, match=message):
            first.merge(other)
    elbo = [evaluate(DATA[:100], bound=iw.ELBO(), seed=seed) for seed in (1, 2)]
    with pytest.raises(ValueError, match="needs all weights at once"):
        elbo[0].merge(elbo[1])
    assert (first + evaluate(DATA[:100], seed=8)).num_samples == 600


def test_the_report_is_one_screen_and_plain_data():
    report = evaluate()
    lines = str(report).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    assert f"{report.nll:.4f}" in lines[1]
    assert f"{report.certified_nll:.4f}" in str(report)
    again = json.loads(json.dumps(report.to_dict()))
    assert again["nll"] == report.nll
    assert again["data"]["log_evidence"] == report.log_evidence.tolist()


def test_saved_reports_come_back(tmp_path):
    report = evaluate(bound=iw.Jackknife(1))
    report.save(tmp_path / "report.pt")
    assert_same(iw.EvidenceReport.load(tmp_path / "report.pt"), report)


@pytest.mark.slow
@pytest.mark.parametrize("tqdm", [True, False])
def test_progress_shows_the_running_nll_on_standard_error(tqdm, capsys, monkeypatch):
    if not tqdm:
        monkeypatch.setitem(sys.modules, "tqdm", None)
        monkeypatch.setattr(progress_module, "_EVERY", -1.0)
    # Long enough for tqdm, which writes ten times a second at most.
    report = evaluate(progress=True, num_samples=10_000)
    out, err = capsys.readouterr()
    assert out == ""
    assert "230 data" in err
    assert "NLL" in err
    if not tqdm:
        assert f"NLL {-report.log_evidence[:200].mean():.3f}" in err


def test_one_datum_has_no_error_over_data():
    report = evaluate(DATA[:1])
    assert math.isnan(report.standard_error)
    assert evaluate_function is iw.evaluate
