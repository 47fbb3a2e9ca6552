"""How one distribution is swept: its default gradient against the derivative of the expected bound.

Every datum has parameters of its own, so one call gives as many independent gradients as there are data; their mean is
compared with the derivative of the expected bound. For continuous scalars and for discrete latents that derivative is a
central finite difference of an exact expectation (trapezoidal rule on the support, enumeration), elsewhere the mean of
as many score-function gradients, computed without the library.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

import iwbounds as iw
from tests.assumptions.distribution_cases import DOUBLE, Case

BOUNDS = {"ELBO": iw.ELBO(), "IWAE": iw.IWAE()}
STANDARD_ERRORS = 5.5
STEP = 1e-4
ADVICE = ("Reparameterized", "STL", "DReG", "ScoreFunction", "VIMCO", "Wake", "Pass its base_dist", "Wrap", "no_grad")


def log_joint(z: Tensor, event_dims: int) -> Tensor:
    """Smooth, asymmetric in the coordinates, and slow enough for Cauchy tails."""
    z = z.to(DOUBLE)
    if event_dims == 0:
        return -1.5 * torch.log1p(z.square() / 2) + 0.4 * z / (1 + z.square()).sqrt()
    size = z.shape[z.ndim - event_dims :].numel()
    weight = 1 + 0.3 * torch.arange(size, dtype=DOUBLE)
    u = z.flatten(z.ndim - event_dims) * weight
    return (-1.5 * torch.log1p(u.square() / 2) + 0.4 * u / (1 + u.square()).sqrt()).sum(-1)


def value_of(name: str, log_w: Tensor) -> Tensor:
    return log_w.mean(0) if name == "ELBO" else log_w.logsumexp(0) - torch.tensor(2.0, dtype=DOUBLE).log()


def default_gradients(case: Case, bound_name: str) -> Tensor | str:
    """The library's gradients, ``(data, parameters)``, or the message with which the call was refused."""
    torch.manual_seed(0)
    size = case.data
    params = {name: p.requires_grad_() for name, p in case.batch(size).items()}
    q = case.make(**params)
    try:
        estimate = iw.estimate(lambda z: log_joint(z, len(q.event_shape)), q, BOUNDS[bound_name], num_samples=2)
    except (ValueError, TypeError) as refused:
        return str(refused)
    value = estimate.value.reshape(size, -1).mean(1)
    return flat(torch.autograd.grad(value.sum(), list(params.values())))


def flat(gradients) -> Tensor:
    return torch.cat([g.flatten(1) if g.ndim > 1 else g.unsqueeze(1) for g in gradients], 1)


def expected_bound(case: Case, bound_name: str, parameters: dict[str, Tensor]) -> Tensor:
    """E[bound] for two samples, exactly."""
    batch = {name: p.unsqueeze(0) for name, p in parameters.items()}
    q = (case.density or case.make)(**batch)
    if case.values is None:
        t = torch.linspace(-30, 30, 901, dtype=DOUBLE)
        z, log_jacobian = case.nodes({name: p.squeeze() for name, p in parameters.items() if p.numel() == 1}, t)
        log_weight = log_jacobian + torch.log(t[1] - t[0])
    else:
        z, log_weight = case.values, torch.zeros(len(case.values), dtype=DOUBLE)
    # A batch axis of one datum follows the axis of values; an expanded batch has equal columns.
    log_q = q.log_prob(z.unsqueeze(1)).reshape(len(z), -1)[:, 0]
    log_p = (log_q + log_weight).clamp_max(700)
    keep = log_p > -60
    log_p, log_w = log_p[keep], (log_joint(z, len(q.event_shape)) - log_q)[keep]
    pair = torch.stack(torch.broadcast_tensors(log_w.unsqueeze(1), log_w))
    probability = (log_p.unsqueeze(1) + log_p).exp()
    assert abs(probability.sum().item() - 1) < 1e-6, "the reference does not integrate to one"
    return (probability * value_of(bound_name, pair)).sum()


def exact_derivative(case: Case, bound_name: str) -> Tensor:
    """Central differences of :func:`expected_bound`, parameter by parameter."""
    centre = {name: p[0] for name, p in case.batch(1).items()}
    slopes = []
    for name, p in centre.items():
        for i in range(p.numel()):
            step = torch.zeros(p.numel(), dtype=DOUBLE)
            step[i] = STEP
            up, down = ({**centre, name: p + sign * step.reshape(p.shape)} for sign in (1, -1))
            slopes.append((expected_bound(case, bound_name, up) - expected_bound(case, bound_name, down)) / (2 * STEP))
    return torch.stack(slopes)


@functools.lru_cache(maxsize=4)
def score_gradients(case: Case) -> dict[str, Tensor]:
    """(L − E L) ∂ log q(z₁, z₂) + ∂L at fixed samples: plain autograd, for a fixed support. The same samples serve all
    bounds."""
    torch.manual_seed(1)
    params = {name: p.requires_grad_() for name, p in case.batch(3 * case.data).items()}
    q = case.make(**params)
    with torch.no_grad():
        z = q.rsample((2,)) if q.has_rsample else q.sample((2,))  # some classes draw soft samples by sample alone
    log_q = q.log_prob(z)
    log_w = log_joint(z, len(q.event_shape)) - log_q
    found = {}
    for name in BOUNDS:
        value = value_of(name, log_w)
        surrogate = (value - value.mean()).detach() * log_q.sum(0) + value
        found[name] = flat(torch.autograd.grad(surrogate.sum(), list(params.values()), retain_graph=True))
    return found


def standard_error(gradients: Tensor) -> Tensor:
    return gradients.std(0) / len(gradients) ** 0.5


def check_default_gradient(case: Case, bound: str) -> None:
    """The default gradient is that of the expected bound, or the call is refused and the message says what fits."""
    found = default_gradients(case, bound)
    if isinstance(found, str):
        assert case.may_refuse or case.must_refuse, f"refused although an estimator fits: {found}"
        assert any(name in found for name in ADVICE), f"the refusal does not say what to do: {found}"
        return
    assert not case.must_refuse, "expected a refusal"
    error = standard_error(found).square()
    if case.score:
        reference = score_gradients(case)[bound]
        truth, error = reference.mean(0), error + standard_error(reference).square()
    else:
        truth = exact_derivative(case, bound)
    error = error.sqrt()
    assert (2 * STANDARD_ERRORS * error < 0.3).all(), f"not powerful enough: {error}"
    distance = (found.mean(0) - truth).abs()
    # A gradient without any variance (a constant one) still has rounding and the step's error.
    assert (distance <= STANDARD_ERRORS * error + 1e-6).all(), f"found {found.mean(0)}, right {truth}, ±{error}"
