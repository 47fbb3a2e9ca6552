"""Two steps of a LightningModule under torchrun, each process with its part of the samples; rank 0 compares."""

from __future__ import annotations

import sys
from typing import Any

import lightning
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader

import iwbounds as iw
from tests.distributed.models import Gaussian, data, flat_gradient
from tests.distributed.sharded_samples import own_rows

K, RATE = 7, 0.1


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = Gaussian()

    def training_step(self, x: Tensor) -> Tensor:
        """The bound is made inside the step, which Lightning calls through DistributedDataParallel's forward."""
        group = dist.group.WORLD
        samples = self.model.samples(x, K)[own_rows(group, K)]
        estimate = iw.estimate(*self.model(x), samples=samples, process_group=group)
        return -group.size() * estimate.value.mean()  # Lightning averages gradients over the processes

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=RATE)


def by_hand(x: Tensor, steps: int) -> Tensor:
    model = Gaussian()
    for _ in range(steps):
        value = iw.estimate(*model(x), samples=model.samples(x, K)).value
        step = flat_gradient(-value.mean(), model)
        with torch.no_grad():
            flat = torch.nn.utils.parameters_to_vector(model.parameters()) - RATE * step
            torch.nn.utils.vector_to_parameters(flat, model.parameters())
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()


def main() -> None:
    x, module = data(4), Module()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, use_distributed_sampler=False, **quiet
    )
    trainer.fit(module, DataLoader(x, batch_size=4))
    found = torch.nn.utils.parameters_to_vector(module.parameters()).detach()
    torch.testing.assert_close(found, by_hand(x, 2), rtol=1e-9, atol=1e-9)
    if dist.get_rank() == 0:
        sys.stdout.write("equal\n")


if __name__ == "__main__":
    main()
