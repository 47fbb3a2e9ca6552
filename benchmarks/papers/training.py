"""A training run that can be interrupted: settings that settle every number, a checkpoint, and what came of it.

Each epoch has a seed of its own, made of the run's seed and the epoch's number. Hence a checkpoint needs no random
state, and a run that is resumed is, to the last bit, the run that was not interrupted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from papers.data import Data
from papers.models import MODELS, OneLayer, TwoLayers, active_units
from tqdm import tqdm

import iwbounds as iw
from iwbounds.seeding import derived_seed, forked_rng

OBJECTIVES: dict[str, tuple[iw.Bound, iw.Gradient]] = {
    "VAE": (iw.ELBO(), iw.Reparameterized()),
    "IWAE": (iw.IWAE(), iw.Reparameterized()),
    "DReG": (iw.IWAE(), iw.DReG()),
    "GDReG": (iw.IWAE(), iw.GDReG()),
}
"""GDReG is DReG with one stochastic layer, whose prior has nothing to train."""


@dataclass(frozen=True)
class Settings:
    """Everything that a run's numbers depend on; equal settings give equal numbers on one machine."""

    data: str
    objective: str
    samples: int
    layers: int = 1
    seed: int = 0
    batch_size: int = 100
    rates: tuple[tuple[int, float], ...] = ()
    """Stages of (epochs, learning rate)."""
    then: str | None = None
    """Another objective, after the stages of ``rates``, with new optimiser state."""
    then_rates: tuple[tuple[int, float], ...] = ()
    hidden: int = 200
    latent: int = 50
    epsilon: float = 1e-4
    """Adam's, the paper's; torch's 1e-8 takes larger steps where gradients are small."""

    @property
    def name(self) -> str:
        switch = "" if self.then is None else f"-then-{self.then}"
        return f"{self.data}-{self.layers}-{self.objective}-{self.samples}{switch}-seed{self.seed}"

    @property
    def checkpoint(self) -> str:
        """A file's name that no other settings have."""
        return f"{self.name}-{hashlib.sha256(repr(self).encode()).hexdigest()[:8]}.pt"

    @property
    def epochs_before_switch(self) -> int:
        return sum(epochs for epochs, _ in self.rates)

    def plan(self) -> list[tuple[str, float]]:
        """Objective and learning rate of each epoch."""
        first = [(self.objective, rate) for epochs, rate in self.rates for _ in range(epochs)]
        return first + [(self.then or self.objective, rate) for epochs, rate in self.then_rates for _ in range(epochs)]


def paper_rates(stages: int = 8) -> tuple[tuple[int, float], ...]:
    """Burda et al.: 3^i epochs at 1e-3 · 10^(−i/7), i = 0 … 7: 3280 epochs in all."""
    return tuple((3**i, 1e-3 * 10 ** (-i / 7)) for i in range(stages))


def geometric_rates(epochs: int, first: float, last: float) -> tuple[tuple[int, float], ...]:
    """One epoch at each of so many learning rates, evenly spaced in their logarithm."""
    ratio = (last / first) ** (1 / max(1, epochs - 1))
    return tuple((1, first * ratio**i) for i in range(epochs))


def linear_rates(epochs: int, first: float, last: float) -> tuple[tuple[int, float], ...]:
    """One epoch at each of so many learning rates, evenly spaced."""
    return tuple((1, first + (last - first) * i / max(1, epochs - 1)) for i in range(epochs))


def stepped_rates(epochs: int, first: float, last: float) -> tuple[tuple[int, float], ...]:
    """The first rate for three quarters of the epochs, then the last one."""
    return (3 * epochs // 4, first), (epochs - 3 * epochs // 4, last)


DECAYS = {"linear": linear_rates, "geometric": geometric_rates, "stepped": stepped_rates}
"""Ways of a learning rate from the first to the last in so many epochs."""


@dataclass
class State:
    """A run under way."""

    settings: Settings
    model: OneLayer | TwoLayers
    optimizer: torch.optim.Optimizer
    curve: list[float]
    """Mean training bound of each epoch that is done."""
    seconds: float = 0.0

    @classmethod
    def begin(cls, settings: Settings, data: Data) -> State:
        # A seed of their own: parameters are the same whatever is trained on them, or drawn before.
        with forked_rng(derived_seed(settings.seed, "parameters")):
            model = MODELS[settings.layers](data.train.mean(0), settings.hidden, settings.latent)
        return cls(settings, model, _optimizer(model, settings.epsilon), [])

    def save(self, path: Path) -> None:
        """Written beside and renamed: an interruption leaves the old checkpoint, never half of one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(
            state | {"settings": repr(self.settings), "curve": self.curve, "seconds": self.seconds},
            part,
        )
        os.replace(part, path)

    def resume(self, path: Path) -> None:
        # weights_only: a checkpoint from elsewhere may not run code
        found = torch.load(path, weights_only=True)
        if found["settings"] != repr(self.settings):
            raise SystemExit(
                f"expected a checkpoint of {self.settings}; {path} is one of {found['settings']}. Remove it, or give "
                "another folder by --checkpoints."
            )
        self.model.load_state_dict(found["model"])
        self.optimizer.load_state_dict(found["optimizer"])
        self.curve, self.seconds = found["curve"], found["seconds"]


def _optimizer(model: torch.nn.Module, epsilon: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3, eps=epsilon)


def train(settings: Settings, data: Data, folder: Path, max_seconds: float = float("inf")) -> State:
    """Train, or go on from the checkpoint in ``folder``; stops after ``max_seconds`` with what it has."""
    state, path = State.begin(settings, data), folder / settings.checkpoint
    if path.exists():
        state.resume(path)
    elif settings.then is not None:
        # Several runs that differ in what comes after the switch share what comes before it.
        before = train(dataclasses.replace(settings, then=None, then_rates=()), data, folder, max_seconds)
        state = dataclasses.replace(before, settings=settings)
    plan, start, saved = settings.plan(), time.monotonic(), time.monotonic()
    bar = tqdm(range(len(state.curve), len(plan)), desc=settings.name, unit="epoch", leave=False)
    for epoch in bar:
        begin = time.monotonic()
        if settings.then is not None and epoch == settings.epochs_before_switch:
            # Moments of one objective's gradients say nothing of another's. The control that goes on with the same
            # objective loses them too, so that it differs in the objective alone.
            state.optimizer = _optimizer(state.model, settings.epsilon)
        state.curve.append(_epoch(state, data, *plan[epoch], epoch))
        state.seconds += time.monotonic() - begin
        bar.set_postfix(bound=f"{state.curve[-1]:.2f}")
        # Each epoch of the digits takes milliseconds: a file for each would be most of the work.
        if time.monotonic() - saved > 60:
            state.save(path)
            saved = time.monotonic()
        if time.monotonic() - start > max_seconds:
            break
    state.save(path)
    return state


def _epoch(state: State, data: Data, objective: str, rate: float, epoch: int) -> float:
    bound, gradient = OBJECTIVES[objective]
    # Set by hand, not by a scheduler: a checkpoint then has no state of a schedule, only the number of its epochs.
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    values = []
    with forked_rng(derived_seed(state.settings.seed, epoch)):
        for x in data.batches(state.settings.batch_size):
            estimate = iw.estimate(*state.model(x), bound, gradient, num_samples=state.settings.samples)
            state.optimizer.zero_grad()
            (-estimate.value.mean()).backward()
            state.optimizer.step()
            values.append(estimate.value.detach())
    # over data, not over batches: the last batch may be smaller
    return torch.cat(values).mean().item()


def measure(state: State, data: Data, num_samples: int) -> dict[str, Any]:
    """Test NLL with its error, active units, and all that is needed to have them again."""
    # One seed for all models: they are compared on the same noise.
    report = iw.evaluate(state.model, data.test, num_samples=num_samples, seed=0, progress=False)
    return {
        "nll": round(report.nll, 3),
        "standard_error": round(report.standard_error, 3),
        "active_units": active_units(state.model, data.test),
        "median_ess": round(report.ess.median().item(), 1),
        "last_training_bound": round(state.curve[-1], 3),
        "curve": [round(bound, 2) for bound in state.curve],
        "epochs": len(state.curve),
        "of_epochs": len(state.settings.plan()),
        "seconds": round(state.seconds),
        "evaluation_samples": num_samples,
        "test_images": len(data.test),
        "settings": dataclasses.asdict(state.settings),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def keep(results: dict[str, Any], path: Path) -> None:
    """Add to the results that ``path`` has, by name."""
    # Read anew each time: another process may have added a run of its own.
    found = json.loads(path.read_text()) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found | results, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    print(f"Results: {path}")
