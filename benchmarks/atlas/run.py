"""The Evidence Atlas: real posteriors with their evidence from both sides.

python benchmarks/atlas/run.py                      # everything: a table and docs/figures/atlas.png
python benchmarks/atlas/run.py --only radiata sonar --keep found.json   # an interrupted run goes on from the file

Half of the posterior draws choose and fit the proposal; the other half, and new draws of the proposal, make the
sandwich. Without the data folder (IWBOUNDS_DATA), scikit-learn's regressions alone are run, and it says so.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from draws import CHAINS, candidates, conditioned, hamiltonian, mode_and_factor
from targets import Target, all_targets, data_folder
from torch import Tensor

import iwbounds as iw

EXACT_DRAWS = 200_000
PILOT = 10_000
GAP = 20  # states between the half that is fitted on and the half that is held out


@dataclass(frozen=True)
class Entry:
    """What was found of one posterior, in plain numbers."""

    name: str
    dimensions: int
    proposal: str
    truth: float | None
    source: str
    lower: tuple[float, float]
    """Value and standard error."""
    upper: tuple[float, float]
    bridge: tuple[float, float]
    certified: tuple[float, float | None]
    """From below and, for exact draws, from above."""
    pareto_k: float
    seconds: float


def halves(target: Target) -> tuple[Tensor, Tensor, int | None]:
    """Draws to fit on, draws held out, and the number of chains of the latter (None: independent)."""
    if target.exact is not None:
        return target.exact(EXACT_DRAWS // 10), target.exact(EXACT_DRAWS), None
    if target.reference is not None:
        chains = target.reference.reshape(10, 200, -1)
        return chains[:, :98].flatten(0, 1), chains[:, 102:].flatten(0, 1), 10
    states = hamiltonian(target.log_density, *mode_and_factor(target))
    third = states.shape[1] // 3
    return states[:, :third].flatten(0, 1), states[:, third + GAP :].flatten(0, 1), CHAINS


def chosen(target: Target, fit_on: Tensor, chains: int | None) -> tuple[str, iw.Proposal]:
    """The candidate with the least relative variance of its weights on both sides, in a pilot run that is thrown away.

    Of every chain, the first two thirds fit the candidates, the last one compares them: on the draws that it was fitted
    on, the mixture with the most components would always win.
    """
    states = fit_on.reshape(chains or 1, -1, fit_on.shape[-1])
    cut = 2 * states.shape[1] // 3
    fitted, compared = states[:, :cut].flatten(0, 1), states[:, cut:].flatten(0, 1)

    def variance(pair: tuple[str, iw.Proposal]) -> float:
        sides = []
        for z, sign in ((pair[1].sample((PILOT,)), 1), (compared, -1)):
            log_w = torch.cat([target.log_density(c) - pair[1].log_prob(c) for c in z.split(5_000)])
            sides.append(len(log_w) / iw.effective_sample_size(sign * log_w).item() - 1)
            # A variance from a tail this heavy is one of the draws that happened to be there.
            if sign == 1 and iw.pareto_k(log_w).item() > 0.7:
                return math.inf
        return sum(sides)

    found = list(candidates(fitted))
    if target.conditional is not None:
        outer = candidates(fitted[:, : target.outer])
        found += [(f"{n}, then Gaussian", conditioned(q, target.outer, target.conditional)) for n, q in outer]
    return min(found, key=variance)


def measure(target: Target, num_samples: int, seed: int) -> Entry:
    # Another stream for each: the errors of similar models would else be those of one set of normal numbers.
    torch.manual_seed(seed + zlib.crc32(target.name.encode()))
    start = time.perf_counter()
    fit_on, held_out, chains = halves(target)
    with torch.no_grad():
        name, proposal = chosen(target, fit_on, chains)
        result = iw.sandwich(
            target.log_density,
            proposal,
            held_out,
            num_samples,
            exact=target.exact is not None,
            chains=chains,
            chunk_size=5_000,
        )
        z = proposal.sample((20_000,))
        shape = iw.pareto_k(torch.cat([target.log_density(c) - proposal.log_prob(c) for c in z.split(5_000)])).item()
    sides = [(side.value.item(), side.standard_error.item()) for side in (result.lower, result.upper, result.bridge)]
    above = None if result.upper.certificate is None else result.upper.certificate.item()
    found = (*sides, (result.lower.certificate.item(), above), shape, time.perf_counter() - start)
    return Entry(target.name, len(target.start), name, target.truth, target.source, *found)


HEADER = (
    "posterior",
    "d",
    "proposal",
    "truth",
    "lower, certified",
    "lower",
    "bridge",
    "upper",
    "upper, certified",
    "k̂",
    "s",
)


def row(entry: Entry) -> list[str]:
    truth = f"{entry.truth:.4f} ({entry.source})" if entry.truth is not None else entry.source
    below, above = entry.certified
    return [
        entry.name,
        str(entry.dimensions),
        entry.proposal,
        truth,
        f"{below:.3f}",
        *(f"{value:.4f} ± {error:.4f}" for value, error in (entry.lower, entry.bridge, entry.upper)),
        "chain draws" if above is None else f"{above:.3f}",
        f"{entry.pareto_k:.2f}",
        f"{entry.seconds:.0f}",
    ]


def markdown(entries: list[Entry]) -> str:
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    return "\n".join([*lines, *("| " + " | ".join(row(entry)) + " |" for entry in entries)])


def draw_figure(entries: list[Entry], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from iwbounds.plots.style import BLACK, BLUE, VERMILION, plain

    figure, axis = pyplot.subplots(figsize=(9, 0.8 + 0.33 * len(entries)), layout="constrained")
    for i, entry in enumerate(entries):
        centre = entry.bridge[0] if entry.truth is None else entry.truth
        ends = (entry.lower, entry.bridge, entry.upper)
        # A little apart, as the three often lie within a thousandth of a nat.
        looks = zip(ends, (BLUE, BLACK, VERMILION), ("o", "D", "o"), (-0.2, 0.0, 0.2), strict=True)
        for (value, error), colour, marker, offset in looks:
            axis.errorbar(value - centre, i + offset, xerr=2 * error, fmt=marker, color=colour, markersize=4, capsize=2)
        axis.plot(entry.certified[0] - centre, i - 0.2, ">", color=BLUE, markerfacecolor="none")
        if entry.certified[1] is not None:
            axis.plot(entry.certified[1] - centre, i + 0.2, "<", color=VERMILION, markerfacecolor="none")
    for label, colour, marker in (
        ("lower ± 2 standard errors", BLUE, "o"),
        ("lower, certified at 99 %", BLUE, ">"),
        ("bridge (no bound)", BLACK, "D"),
        ("upper", VERMILION, "o"),
        ("upper, certified at 99 %", VERMILION, "<"),
    ):
        filled = colour if marker in "oD" else "none"
        axis.plot([], [], marker, color=colour, markerfacecolor=filled, label=label)
    names = [e.name + ("" if e.truth is not None else " *") for e in entries]
    axis.set_yticks(range(len(entries)), names)
    axis.invert_yaxis()
    axis.axvline(0.0, color=BLACK, linewidth=0.8)
    axis.set_xscale("symlog", linthresh=0.01)
    plain(axis, "Evidence from both sides", "nats from the truth (*: from the bridge estimate)", "")
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"\nFigure: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="posteriors whose names begin so")
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a file that holds what was found; what it holds is not run again")
    parser.add_argument("--out", type=Path, help="of the figure; docs/figures/atlas.png, out/atlas.png with --only")
    options = parser.parse_args()
    if data_folder() is None:
        print("Data folder not found (set IWBOUNDS_DATA): scikit-learn's regressions only.")
    # A leapfrog step may leave the range of a parameter: the proposal is then rejected, not an error.
    torch.distributions.Distribution.set_default_validate_args(False)
    kept = [] if options.keep is None or not options.keep.exists() else json.loads(options.keep.read_text())
    found = {entry["name"]: Entry(**entry) for entry in kept}
    entries = []
    for target in all_targets():
        if options.only and not target.name.startswith(tuple(options.only)):
            continue
        if target.name not in found:
            found[target.name] = measure(target, options.samples, options.seed)
            if options.keep is not None:
                options.keep.write_text(json.dumps([asdict(entry) for entry in found.values()], indent=1))
        entries.append(found[target.name])
        print("  ".join(row(entries[-1])), flush=True)
    print("\n" + markdown(entries))
    # A figure of some posteriors must not take the place of the one that the docs show.
    folder = Path(__file__).parents[2] / ("out" if options.only else "docs/figures")
    path = options.out or folder / "atlas.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_figure(entries, path)


if __name__ == "__main__":
    main()
