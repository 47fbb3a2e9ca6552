"""torch.compile, autocast and imports: the modes that a training loop runs in."""

import subprocess
import sys

import pytest
import torch
from torch.distributions import Independent, Normal

import iwbounds as iw

B, D, K = 6, 3, 8
GRADIENTS = [
    iw.Reparameterized(),
    iw.STL(),
    iw.DReG(),
    iw.Controlled(strengths=(0.5, -0.8)),
    iw.DReGWake(),
    iw.VIMCO(),
    iw.Wake(),
]
# The way to the parameters is the gradient's: one bound meets them all. Other bounds bring a value, c and h, for which
# DReG asks, and leave-one-out values, for which VIMCO does.
COMPILED = [
    *((iw.IWAE(), gradient) for gradient in GRADIENTS),
    *((bound, gradient) for bound in (iw.ELBO(), iw.Renyi(0.3)) for gradient in (iw.DReG(), iw.VIMCO())),
]


def normal(loc, scale):
    return Normal(loc, scale, validate_args=False)  # the compiler cannot trace validation


class Model(torch.nn.Module):
    def __init__(self, bound, gradient, callables=False, **options):
        super().__init__()
        self.callables, self.options = callables, options
        self.encoder, self.decoder = torch.nn.Linear(4, D), torch.nn.Linear(D, 4)
        self.bound, self.gradient = bound, gradient

    def forward(self, x):
        q = Independent(normal(self.encoder(x), 0.5), 1, validate_args=False)

        if self.callables:
            q = iw.Proposal(q.rsample if self.gradient.pathwise else q.sample, q.log_prob, self.gradient.pathwise)

        def log_joint(z):
            return normal(0.0, 1.0).log_prob(z).sum(-1) + normal(self.decoder(z), 1.0).log_prob(x).sum(-1)

        return iw.estimate(log_joint, q, self.bound, self.gradient, num_samples=K, **self.options).value.mean()


@pytest.fixture
def compiler():
    """torch._dynamo switches the validation of distributions off when it is first used: put it back."""
    before = torch.distributions.Distribution._validate_args
    torch._dynamo.reset()
    yield
    torch.distributions.Distribution.set_default_validate_args(before)


def step(model, function, x):
    torch.manual_seed(3)
    model.zero_grad()
    value = function(x)
    value.backward()
    return value.detach(), [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("callables", [False, True], ids=["distribution", "callables"])
@pytest.mark.parametrize(("bound", "gradient"), COMPILED, ids=repr)
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's own doing
@pytest.mark.usefixtures("compiler")
def test_compiles_into_one_graph_with_the_eager_answer(bound, gradient, callables):
    model, x = Model(bound, gradient, callables), torch.randn(B, 4)
    eager = step(model, model, x)
    compiled = step(model, torch.compile(model, fullgraph=True, backend="aot_eager"), x)
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.usefixtures("compiler")
def test_an_estimator_that_learns_is_refused_by_the_compiler():
    model, x = Model(iw.IWAE(), iw.Controlled()), torch.randn(B, 4)
    with pytest.raises(Exception, match=r"which torch\.compile cannot trace.*Controlled\(strengths=…\)"):
        torch.compile(model, fullgraph=True, backend="aot_eager")(x)


@pytest.mark.parametrize("gradient", [iw.Reparameterized(), iw.DReG(), iw.VIMCO()], ids=repr)
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.usefixtures("compiler")
def test_a_backward_on_few_samples_compiles_into_one_graph(gradient):
    model, x = Model(iw.IWAE(), gradient, backward_samples=3), torch.randn(B, 4)
    eager = step(model, model, x)
    compiled = step(model, torch.compile(model, fullgraph=True, backend="aot_eager"), x)
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gradient", [iw.Reparameterized(), iw.STL(), iw.DReG(), iw.VIMCO()], ids=repr)
def test_autocast_gives_float32_values_near_the_full_precision_ones(gradient):
    model, x = Model(iw.IWAE(), gradient), torch.randn(B, 4)
    value, grads = step(model, model, x)

    def half(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(x)

    half_value, half_grads = step(model, half, x)
    assert half_value.dtype == torch.float32
    torch.testing.assert_close(half_value, value, rtol=0.02, atol=0.05)
    assert all(g.dtype == torch.float32 for g in half_grads)
    torch.testing.assert_close(half_grads[2], grads[2], rtol=0.1, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_log_densities_are_promoted(dtype):
    loc = torch.zeros(B, requires_grad=True)
    estimate = iw.estimate(lambda z: (-z.square()).to(dtype), Normal(loc, 1.0), num_samples=K)
    assert estimate.value.dtype == estimate.log_weights.dtype == torch.float32
    estimate.value.sum().backward()
    assert loc.grad.dtype == torch.float32


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_changes_no_global_state_and_loads_no_compiler():
    state = (
        "(torch.get_default_dtype(), torch.is_grad_enabled(), torch.distributions.Distribution._validate_args,"
        " torch.get_rng_state().sum().item(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(),"
        " torch.get_float32_matmul_precision())"
    )
    code = f"""
import sys, torch, torch.distributions
torch.manual_seed(5)
before, modules = {state}, set(sys.modules)
import iwbounds
assert {state} == before
loaded = {{name.split('.')[0] for name in set(sys.modules) - modules}}
print(sorted(loaded & {{'triton', 'matplotlib', 'pytest', 'hypothesis', 'scipy'}}))
"""
    assert run(code).strip() == "[]"
