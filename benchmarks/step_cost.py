"""What the engine costs: one training step of iw.estimate against the shortest hand-written PyTorch, as ratios.

python benchmarks/step_cost.py              # 784-200-200-50, batch 100, K in 5, 50, 500
python benchmarks/step_cost.py --tiny       # 16-8-8-2, batch 20, K = 5: the engine's own overhead
python benchmarks/step_cost.py --compiled   # all sides under torch.compile, for which there must be a C++ compiler
"""

from __future__ import annotations

from functools import partial

import torch
from common import VAE, arguments, binary_images, gate, hand_written_iwae, medians, step_of, table

import iwbounds as iw

GRADIENTS = {"reparameterized": iw.Reparameterized(), "dreg": iw.DReG(), "stl": iw.STL()}


def steps_of(model: VAE, x: torch.Tensor, num_samples: int, compiled: bool):
    """Steps by name; each leaves its gradient in ``.grad``."""

    def step(loss_of):
        return partial(step_of(model, loss_of, compiled), x)

    def engine(gradient):
        return step(lambda x: -iw.estimate(*model(x), iw.IWAE(), gradient, num_samples=num_samples).value.mean())

    if compiled:
        torch.compiler.reset()
    hand_written = step(lambda x: hand_written_iwae(model, x, num_samples))
    return {"hand-written": hand_written} | {name: engine(gradient) for name, gradient in GRADIENTS.items()}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--compiled", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = VAE(16, 8, 2) if options.tiny else VAE()
    batch, counts = (20, [5]) if options.tiny else (100, [5, 50, 500])
    x = binary_images(batch, 16 if options.tiny else 784)
    rows = []
    for count in counts:
        steps = steps_of(model, x, count, options.compiled)
        gate(model, steps["hand-written"], {"reparameterized": steps["reparameterized"]})
        repeats = options.repeats or (2000 if options.tiny else max(7, 1500 // count))
        found = medians(steps, repeats)
        base = found["hand-written"]
        rows.append([count, batch, f"{1e3 * base:.2f}", *(f"{found[name] / base:.3f}" for name in GRADIENTS)])
    print(table(["K", "batch", "hand-written ms", *(f"{name} ÷" for name in GRADIENTS)], rows))


if __name__ == "__main__":
    main()
