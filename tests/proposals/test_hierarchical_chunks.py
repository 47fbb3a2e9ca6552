"""Auxiliary variables are drawn in blocks, and drawn again in the backward: the same gradient in bounded memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Independent, Normal

import iwbounds as iw
from tests.oracles.linear_gaussian import LinearHierarchy
from tests.oracles.memory import peak_of_live_tensors

PATHWISE = {"dreg": iw.DReG(), "total": iw.Reparameterized()}
EVERY = {**PATHWISE, "vimco": iw.VIMCO()}
KINDS = {
    "iwhvi": {"reverse": True, "num_aux": 3},
    "iwhvi, no inner rule": {"reverse": True, "num_aux": 3, "gradient": iw.Reparameterized()},
    "hvm": {"reverse": True, "num_aux": 0},
    "sivi": {"reverse": False, "num_aux": 3},
}


def in_blocks(mixing: Normal) -> iw.Proposal:
    """16 samples of z, with their auxiliary variables, in one call."""
    return iw.Proposal(mixing.rsample, mixing.log_prob, samples_per_call=16)


def linear(kind: dict, mixing=in_blocks) -> tuple[LinearHierarchy, iw.HierarchicalProposal]:
    model = LinearHierarchy()
    options = {name: value for name, value in kind.items() if name not in ("reverse", "num_aux")}
    reverse = model.reverse if kind["reverse"] else None
    q = iw.HierarchicalProposal(mixing(model.mixing((4,))), model.conditional, reverse, kind["num_aux"], **options)
    return model, q


def drawn_in_blocks(sample, sizes: list[int]):
    """Latents of several calls, in one graph."""
    parts = [sample((size,)) for size in sizes]
    joined = [torch.cat(leaves) for leaves in zip(*parts, strict=True)]
    return type(parts[0])(*joined) if hasattr(parts[0], "_fields") else tuple(joined)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("gradient", EVERY.values(), ids=EVERY)
def test_gradients_of_blocks_that_are_forgotten_are_those_of_the_same_samples_in_one_graph(kind, gradient) -> None:
    model, q = linear(kind)
    log_joint, extended = q.extend(model.log_joint)
    torch.manual_seed(0)
    samples = drawn_in_blocks(extended.sample, [16, 16, 18])
    whole = iw.estimate(log_joint, extended, iw.IWAE(), gradient, samples=samples)
    whole.value.sum().backward()
    expected = model.gradients()

    for run in ("one graph of chunks", "two passes"):
        model, q = linear(kind)
        torch.manual_seed(0)
        if run == "two passes":
            options = {"bound": iw.IWAE(), "gradient": gradient, "num_samples": 50, "chunk_size": 7}
            value = iw.accumulate(lambda _, q=q, model=model: (model.log_joint, q), torch.zeros(4), 28, **options).value
            found = {name: -4 * g for name, g in model.gradients().items()}
        else:
            value = iw.estimate(model.log_joint, q, iw.IWAE(), gradient, num_samples=50, chunk_size=7).value
            value.sum().backward()
            found = model.gradients()
        torch.testing.assert_close(value.detach(), whole.value.detach(), rtol=0, atol=1e-12)
        assert found == pytest.approx(expected, abs=1e-10), run


class Discrete:
    """Discrete ψ, discrete z, or both, of 4 data."""

    def __init__(self, psi: bool, z: bool) -> None:
        generator = torch.Generator().manual_seed(1)
        self.logits = torch.randn(4, 3, generator=generator, dtype=torch.float64).requires_grad_()
        self.level = torch.randn(3, generator=generator, dtype=torch.float64).requires_grad_()
        continuous = Normal(self.logits[:, 0], 1.0)
        q = Categorical(logits=self.logits) if psi else continuous
        self.mixing = iw.Proposal(q.sample if psi else q.rsample, q.log_prob, not psi, samples_per_call=16)
        self.q = iw.HierarchicalProposal(self.mixing, self.conditional, num_aux=2, reparameterized=(not z, not psi))
        self.psi, self.z = psi, z

    def conditional(self, psi: Tensor) -> Bernoulli | Normal:
        level = self.level[psi] if self.psi else self.level[0] + self.level[1] * psi
        return Bernoulli(logits=level) if self.z else Normal(level, 0.8)


@pytest.mark.parametrize("psi", [True, False], ids=["discrete psi", "continuous psi"])
@pytest.mark.parametrize("z", [True, False], ids=["discrete z", "continuous z"])
def test_score_gradients_of_forgotten_blocks(psi, z) -> None:
    def log_joint(latent):
        return Normal(0.3, 1.0).log_prob(latent)

    one, other = Discrete(psi, z), Discrete(psi, z)
    extended_joint, extended = one.q.extend(log_joint)
    torch.manual_seed(0)
    samples = drawn_in_blocks(extended.sample, [16, 16, 18])
    if z:
        samples = (samples[0].detach(), *samples[1:])
    whole = iw.estimate(extended_joint, extended, gradient=iw.VIMCO(), samples=samples).value
    torch.manual_seed(0)
    chunked = iw.estimate(log_joint, other.q, gradient=iw.VIMCO(), num_samples=50, chunk_size=7).value
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-12)
    for value in (whole, chunked):
        value.sum().backward()
    for mine, truth in ((other.logits, one.logits), (other.level, one.level)):
        torch.testing.assert_close(mine.grad, truth.grad, rtol=0, atol=1e-10)
        assert truth.grad.abs().max() > 1e-3


BATCH, DIM, NUM_AUX = 4, 200, 19


def wide(reverse: bool, inner: iw.Gradient | None = None) -> iw.HierarchicalProposal:
    """16 samples at a time, each with 16 000 numbers of ψ."""
    loc = torch.zeros(BATCH, DIM, requires_grad=True)
    scale, slope = torch.ones(DIM, requires_grad=True), torch.full((DIM,), 0.5, requires_grad=True)

    def conditional(psi: Tensor) -> Independent:
        return Independent(Normal(psi * scale, 0.5), 1)

    def backwards(z: Tensor) -> Independent:
        return Independent(Normal(z * slope, 1.0), 1)

    mixing = in_blocks(Independent(Normal(loc, 1.0), 1))
    return iw.HierarchicalProposal(mixing, conditional, backwards if reverse else None, NUM_AUX, inner)


@pytest.mark.parametrize(
    ("reverse", "inner", "gradient"),
    [
        *((True, None, gradient) for gradient in EVERY.values()),
        (True, iw.Reparameterized(), iw.DReG()),
        (False, None, iw.DReG()),
    ],
    ids=[*(f"iwhvi-{name}" for name in EVERY), "iwhvi, no inner rule-dreg", "sivi-dreg"],
)
def test_peak_memory_does_not_grow_with_the_number_of_samples(reverse, inner, gradient) -> None:
    """All that grows is a few numbers per sample and datum: far less than what is kept without blocks."""

    def peak(count: int) -> int:
        q = wide(reverse, inner)

        def step() -> None:
            value = iw.estimate(
                lambda z: -z.square().sum(-1), q, gradient=gradient, num_samples=count, chunk_size=10
            ).value
            value.sum().backward()

        return peak_of_live_tensors(step)

    more_latents = 300 * BATCH * DIM * (NUM_AUX + 1) * 4
    assert peak(400) - peak(100) < more_latents / 10


def test_blocks_have_about_a_million_elements() -> None:
    mixing = Independent(Normal(torch.zeros(8, 32), 1.0), 1)
    sivi = iw.HierarchicalProposal(mixing, lambda psi: Independent(Normal(psi, 1.0), 1), num_aux=9)
    _, extended = sivi.extend(lambda z: z.sum(-1))
    assert extended.samples_per_call == 400  # of 2560 elements each
    _, shared = iw.HierarchicalProposal(mixing, sivi.conditional, num_aux=9, shared=True).extend(lambda z: z.sum(-1))
    assert shared.samples_per_call is None  # what all samples share is drawn once


@pytest.mark.parametrize("gradient", PATHWISE.values(), ids=PATHWISE)
def test_randomness_from_elsewhere_is_noticed(gradient) -> None:
    generator, scale = torch.Generator().manual_seed(0), torch.ones(3, requires_grad=True)
    q = iw.HierarchicalProposal(
        lambda shape: torch.randn(*shape, 3, generator=generator), lambda psi: Normal(psi * scale, 1.0), num_aux=2
    )
    value = iw.estimate(lambda z: -z.square(), q, gradient=gradient, num_samples=40, chunk_size=10).value
    with pytest.raises(RuntimeError, match="randomness comes from elsewhere"):
        value.sum().backward()


def test_shared_components_are_repeated_and_not_copied() -> None:
    model = LinearHierarchy()
    q = iw.HierarchicalProposal(model.mixing((4,)), model.conditional, num_aux=50, shared=True)
    _, extended = q.extend(model.log_joint)
    _, _, shared = extended.sample((1000,))
    assert shared.shape == (1000, 4, 50)
    assert shared.untyped_storage().nbytes() <= (1000 + 50) * 4 * 8


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_samples_that_are_kept_are_those_of_z(kind) -> None:
    model, q = linear(kind, mixing=lambda mixing: mixing)
    estimate = iw.estimate(model.log_joint, q, num_samples=20, keep_samples=True)
    assert isinstance(estimate.samples, Tensor)
    assert estimate.samples.shape == (20, 4)
    assert not estimate.samples.requires_grad
