"""A trained model leaves its process: a state dict gives the same report, an exported graph scores without iwbounds."""

import io
import sys

import torch
from torch import nn
from torch.distributions import Independent, Normal

import iwbounds as iw


class FactorAnalysis(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(2, 6)

    def pair(self, x):
        mean, log_scale = self.encoder(x).chunk(2, -1)

        def log_joint(z):
            prior = Normal(0.0, 1.0, validate_args=False).log_prob(z).sum(-1)
            return prior + Normal(self.decoder(z), 0.5, validate_args=False).log_prob(x).sum(-1)

        return log_joint, Independent(Normal(mean, log_scale.exp(), validate_args=False), 1, validate_args=False)

    def forward(self, x, noise):
        """Scores: IWAE log-evidence (B,) with given noise (K, B, 2), so that a deployed score does not flicker."""
        log_joint, q = self.pair(x)
        z = q.mean + q.stddev * noise
        return iw.IWAE()(log_joint(z) - q.log_prob(z))


def main(quick=False):
    torch.manual_seed(0)
    x = torch.randn(300, 2) @ torch.randn(2, 6) + 0.5 * torch.randn(300, 6)
    model = FactorAnalysis()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(50 if quick else 1000):
        optimizer.zero_grad()
        iw.accumulate(model.pair, x, num_samples=8)
        optimizer.step()
    report = iw.evaluate(model.pair, x, num_samples=100, seed=3, progress=False)
    file, loaded = io.BytesIO(), FactorAnalysis()  # or a path
    torch.save(model.state_dict(), file)
    loaded.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    again = iw.evaluate(loaded.pair, x, num_samples=100, seed=3, progress=False)
    assert torch.equal(again.log_evidence, report.log_evidence)  # parameters and seed settle every digit

    rows, noise = torch.export.Dim("rows"), torch.randn(100, 300, 2)
    program = torch.export.export(model.eval(), (x, noise), dynamic_shapes=({0: rows}, {1: rows}))
    torch.export.save(program, file := io.BytesIO())
    scorer = torch.export.load(io.BytesIO(file.getvalue())).module()
    torch.testing.assert_close(scorer(x[:7], noise[:, :7]), model(x[:7], noise[:, :7]))
    print(report)


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
