"""FSDP2: parameters sharded over the same ranks as the samples."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import iwbounds as iw
from tests.distributed.models import Gaussian, data, flat_gradient
from tests.distributed.sharded_samples import own_rows

K = 7


class Loss(Gaussian):
    """The bound inside forward: FSDP's hooks hang on the tensors that forward returns."""

    def forward(self, x: Tensor, group: dist.ProcessGroup, options: dict[str, Any]) -> Tensor:
        samples = self.samples(x, K)[own_rows(group, K)]
        log_joint, q = super().forward(x)
        return -group.size() * iw.estimate(log_joint, q, samples=samples, process_group=group, **options).value.mean()


def gradients(group: dist.ProcessGroup) -> int:
    x, mesh, cases = data(4), init_device_mesh("cpu", (group.size(),)), 0
    for options in ({}, {"chunk_size": 2}, {"gradient": iw.Reparameterized()}, {"gradient": iw.Wake()}):
        model, alone = Loss(), Gaussian()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # FSDP's own, of the view that a linear layer returns
            for module in (model.encoder, model.decoder, model):
                fully_shard(module, mesh=mesh)
            model(x, group, options).backward()
        found = torch.cat([p.grad.full_tensor().flatten() for p in model.parameters()])
        value = iw.estimate(*alone(x), samples=alone.samples(x, K), gradient=options.get("gradient")).value
        torch.testing.assert_close(found, flat_gradient(-value.mean(), alone), rtol=1e-9, atol=1e-9)
        cases += 1
    return cases
