"""What the kernels are fed, and how near they must be to the reference in float64."""

import torch

INF, NAN = torch.inf, torch.nan
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
SIZES = [(1, 3), (2, 1), (63, 5), (100, 2), (1000, 1), (2000, 9)]
"""(K, batch); the last is cut into parts."""

ROWS = {
    "ties": [0.0, 0.0, 0.0, 0.0],
    "one dominates": [1000.0, 0.0, 3.0, -2.0],
    "far below": [-1e4, -1e4 + 1, -1e4 - 3, -2e4],
    "nearly equal": [1e-8, 0.0, -1e-8, 3e-8],
    "one dead": [-INF, 0.0, 3.0, 1.0],
    "one alive": [-INF, -INF, 2.0, -INF],
    "all dead": [-INF] * 4,
    "one NaN": [NAN, 1.0, 2.0, 4.0],
    "NaN and dead": [NAN, -INF, 0.0, 0.0],
    "one infinite": [INF, 1.0, 2.0, 0.0],
}


def log_weights(count, *batch, dtype, device, spread=4.0):
    """Log-weights whose effective sample size is a small part of ``count``."""
    generator = torch.Generator().manual_seed(count)
    x = torch.randn(count, *batch, generator=generator, dtype=torch.float64) * spread
    return x.to(dtype).to(device)


def assert_near(found, expected, dtype, scale=1.0):
    """Within about 30 roundings of the accumulating type (weights are exponentials of numbers of size 10), or two of
    the type that ``found`` is rounded to."""
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    rounding = torch.finfo(found.dtype).eps
    torch.testing.assert_close(
        found.double().cpu(),
        expected.double().cpu(),
        rtol=max(100 * eps, 2 * rounding),
        atol=30 * eps * scale,
        equal_nan=True,
    )
