"""What every rank of a group checks of ``iw.estimate(process_group=)``, against one process on the same draws."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import iwbounds as iw
from iwbounds.checks import map_latents
from iwbounds.engine.ranks import BOUND, LEVEL, Ranks
from iwbounds.seeding import forked_rng
from tests.distributed.models import B, Gaussian, Mixed, data, flat_gradient
from tests.registry import BOUNDS, JUMPING, PATHWISE, SCORE

OTHER = {
    "stl": iw.STL,
    "wake": iw.Wake,
    "dreg-wake": iw.DReGWake,
    "ovis": lambda: iw.OVIS(0.5),
    "baseline": lambda: iw.ScoreFunction(iw.RunningMean(0.5)),
}
GRADIENTS = PATHWISE | SCORE | OTHER
RANDOM = {"sumo": iw.SUMO}
UPSTREAM = torch.tensor([0.7, -1.1, 0.4], dtype=torch.float64)
Case = tuple[str, iw.Bound, iw.Gradient, dict[str, Any]]


def legal(count: int) -> Iterator[Case]:
    """Every bound with every estimator that takes it, at so many samples."""
    for name, bound in (BOUNDS | JUMPING | RANDOM).items():
        for other, gradient in GRADIENTS.items():
            try:
                bound().check_count(count)
                gradient().check(bound())
            except ValueError:
                continue
            yield f"{name}, {other}, K = {count}", bound(), gradient(), {}


OPTIONS: list[dict[str, Any]] = [
    {"chunk_size": 2},
    {"backward_samples": 2},
    {"backward_samples": 4, "chunk_size": 2},
    {"proposal_bound": iw.MIWAE(2)},
]


def optional() -> Iterator[Case]:
    """Options of the engine, for estimators of each kind."""
    for options in OPTIONS:
        for name in ("reparameterized", "dreg", "stl", "control variate", "vimco", "wake", "baseline"):
            yield f"iwae, {name}, {options}", iw.IWAE(), GRADIENTS[name](), options


def own_rows(group: dist.ProcessGroup, count: int) -> slice:
    whole, rest = divmod(count, group.size())
    first = group.rank() * whole + min(group.rank(), rest)
    return slice(first, first + whole + (group.rank() < rest))


def peeked_seed() -> int:
    """What the next call will take from torch's generator, which is left as it was."""
    with torch.random.fork_rng(devices=[]):
        return int(torch.randint(2**62, ()))


class Compared:
    """Calls with a group, and without one on rank 0. What all of them found is compared at the end, at once."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.names: list[str] = []
        self.found: list[Tensor] = []
        self.parts: list[Tensor] = []
        self.expected: list[tuple[Tensor, Tensor]] = []

    def case(self, case: Case, model: Gaussian, count: int) -> None:
        name, bound, gradient, options = case
        torch.manual_seed(len(self.names))
        seed, x, before = peeked_seed(), data(), copy.deepcopy(gradient)  # a running mean changes with every call
        z = map_latents(lambda z: z[own_rows(self.group, count)], model.samples(x, count))
        shared = iw.estimate(*model(x), bound, gradient, samples=z, process_group=self.group, **options)

        def alone() -> iw.Estimate:
            return iw.estimate(*model(x), bound, before, samples=model.samples(x, count), **options)

        self.compare(name, shared, alone, model, seed)

    def compare(
        self, name: str, shared: iw.Estimate, alone: Callable[[], iw.Estimate], model: torch.nn.Module, seed: int
    ) -> None:
        self.names.append(name)
        self.found.append(numbers(shared))
        self.parts.append(flat_gradient((UPSTREAM * shared.value).sum(), model))
        if self.group.rank() == 0:
            with forked_rng(seed + self.group.size() + BOUND):  # where a bound, or a choice of samples, is random
                one = alone()
            self.expected.append((numbers(one), flat_gradient((UPSTREAM * one.value).sum(), model)))

    def finish(self) -> int:
        """Compare; how many cases there were."""
        total = torch.cat(self.parts)
        dist.all_reduce(total)
        found = [torch.empty(sum(map(len, self.found)), dtype=torch.float64) for _ in range(self.group.size())]
        dist.all_gather(found, torch.cat(self.found))
        if self.group.rank() == 0:
            for one in found[1:]:
                assert torch.equal(one.nan_to_num(), found[0].nan_to_num()), "all ranks have the same numbers"
            totals = total.split(list(map(len, self.parts)))
            for case in zip(self.names, self.found, totals, self.parts, self.expected, strict=True):
                _assert_same(*case)
        return len(self.names)


def _assert_same(name: str, found: Tensor, total: Tensor, part: Tensor, expected: tuple[Tensor, Tensor]) -> None:
    for mine, theirs in ((found, expected[0]), (total, expected[1])):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9, msg=lambda m: f"{name}: {m}")
    # Each rank has a part, and none the whole. (Bounds of few samples may happen to be of one rank's.)
    if name.startswith("iwae"):
        assert (part - expected[1]).norm() > 1e-6 * expected[1].norm() > 0, name


def numbers(estimate: iw.Estimate) -> Tensor:
    """Value, log-weights and coefficients in one vector."""
    c = estimate.coefficients
    parts = (estimate.value.detach(), estimate.log_weights, c.model, c.path, c.score)
    return torch.cat([part.flatten() for part in parts if part is not None])


def whole_table(group: dist.ProcessGroup, counts: tuple[int, ...]) -> int:
    compared, done = Compared(group), set()
    for count in counts:
        for case in legal(count):
            if (key := case[0].rpartition(",")[0]) not in done:  # at the first number that suits the bound
                done.add(key)
                compared.case(case, Gaussian(), count)
    for case in optional():
        compared.case(case, Gaussian(), max(counts))
        if "proposal_bound" not in case[3] and case[2].pathwise is False and case[2].follows_bound:
            compared.case(case, Mixed(), max(counts))
    model = Gaussian()
    model.level = torch.nn.Parameter(torch.zeros(B, dtype=torch.float64))
    learned = iw.ScoreFunction(_Level(model))
    compared.case(("learned baseline", iw.IWAE(), learned, {}), model, max(counts))
    compared.case(("learned baseline", iw.IWAE(), learned, {"backward_samples": 3}), model, max(counts))
    return compared.finish()


class _Level:
    """A baseline that a copy of the estimator shares."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    def __call__(self) -> Tensor:
        return self.model.level

    def __deepcopy__(self, _memo: object) -> _Level:
        return self


def drawn_on_every_rank(group: dist.ProcessGroup, count: int) -> list[Any]:
    """Draws of the ranks' own, put together and given to one process; all draws, of two calls."""
    torch.manual_seed(100 + group.rank())  # ranks need not be seeded alike
    compared, x, all_draws = Compared(group), data(), []
    for bound in (iw.IWAE(), iw.SUMO(), iw.UMLMC(group.size())):
        seed = torch.tensor(peeked_seed())
        dist.broadcast(seed, 0)
        before, model = torch.get_rng_state(), Gaussian()
        options = {} if bound.chooses_num_samples else {"num_samples": count}
        shared = iw.estimate(*model(x), bound, process_group=group, keep_samples=True, **options)
        after = torch.get_rng_state()
        torch.set_rng_state(before)
        chunked = iw.estimate(*model(x), bound, process_group=group, chunk_size=2, **options)
        torch.testing.assert_close(chunked.log_weights, shared.log_weights, rtol=1e-12, atol=1e-12)
        torch.set_rng_state(before)
        torch.randint(2**62, ())
        assert torch.equal(torch.get_rng_state(), after), "a call takes one number from torch's generator"
        if isinstance(bound, iw.UMLMC):
            with forked_rng(int(seed) + group.size() + LEVEL):
                bound, _ = bound.frozen_level()

        def alone(model: Gaussian = model, bound: iw.Bound = bound, shared: iw.Estimate = shared) -> iw.Estimate:
            z = model.placed(x, model.noise(x, shared.samples))
            return iw.estimate(*model(x), bound, samples=z)

        compared.compare(repr(bound), shared, alone, model, int(seed))
        all_draws.append(shared.samples.flatten(1))
    compared.finish()
    return torch.cat(all_draws).tolist()


def quasi_random(group: dist.ProcessGroup, count: int) -> None:
    """The ranks' points are one table's: as even as those of one process."""
    torch.manual_seed(group.rank())
    x, model = data(), Gaussian()
    log_joint, q = model(x)
    estimate = iw.estimate(log_joint, iw.QuasiRandom(q), num_samples=count, process_group=group, keep_samples=True)
    uniform = 0.5 * (1 + torch.erf(model.noise(x, estimate.samples) / 2**0.5))
    for row in uniform.flatten(1).T:
        assert torch.equal(torch.histc(row, count, 0, 1), torch.ones(count, dtype=torch.float64))

    def alone() -> iw.Estimate:
        z = model.placed(x, model.noise(x, estimate.samples))
        return iw.estimate(*model(x), gradient=iw.Reparameterized(), samples=z)

    compared = Compared(group)
    compared.compare("quasi-random", estimate, alone, model, 0)
    compared.finish()


def bytes_sent(group: dist.ProcessGroup, count: int, dtype: torch.dtype) -> list[int]:
    """What each collective of one call receives, in bytes, over all ranks."""
    found, gather = [], dist.all_gather

    def counting(received: list[Tensor], sent: Tensor, group: dist.ProcessGroup) -> None:
        found.append(sum(part.numel() * part.element_size() for part in received))
        gather(received, sent, group=group)

    others = [name for name in ("all_reduce", "broadcast", "all_gather_object") if hasattr(dist, name)]
    dist.all_gather = counting
    for name in others:
        setattr(dist, name, None)  # a call would raise
    x, model = data().to(dtype), Gaussian().to(dtype)
    value = iw.estimate(*model(x), num_samples=count, backward_samples=2, process_group=group).value
    value.sum().backward()
    return found


def summed(group: dist.ProcessGroup) -> list[float]:
    """What is added up over the ranks is a new tensor, in the precision that it has."""
    ranks = Ranks(group, lambda: -1)
    mine = torch.full((2, 3), 10.0 ** group.rank(), dtype=torch.float64).T
    total = ranks.all_reduce_sum(mine)
    assert mine.eq(10.0 ** group.rank()).all()
    assert total.shape == mine.shape
    return total.unique().tolist()
