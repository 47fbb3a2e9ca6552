"""A convolutional VAE trained by Lightning with eight samples, then evaluated: test NLL with its errors."""

import sys

import lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.distributions import Bernoulli, Independent, Normal
from torch.utils.data import DataLoader

import iwbounds as iw


class ConvVAE(lightning.LightningModule):
    def __init__(self, latent=8):
        super().__init__()
        down = [nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten()]
        up = [nn.ReLU(), nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1)]
        self.encoder = nn.Sequential(*down, nn.Linear(128, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, 128), nn.Unflatten(1, (32, 2, 2)), *up)

    def forward(self, x):
        mean, log_scale = self.encoder(x).chunk(2, -1)

        def log_joint(z):
            # Convolutions take one batch axis: samples and data (K, B) go through as one, and come back as two.
            logits = self.decoder(z.flatten(0, 1)).unflatten(0, z.shape[:2])
            likelihood = Independent(Bernoulli(logits=logits, validate_args=False), 3).log_prob(x)
            return Normal(0.0, 1.0).log_prob(z).sum(-1) + likelihood

        return log_joint, Independent(Normal(mean, log_scale.exp()), 1)

    def training_step(self, x):
        return -iw.estimate(*self(x), num_samples=8).value.mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def main(quick=False):
    torch.manual_seed(0)
    images = torch.from_numpy(load_digits().images).float().unsqueeze(1).ge(8).float()
    train, test = (images[:200], images[-30:]) if quick else (images[:1500], images[1500:])
    model = ConvVAE()
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": not quick}
    before = iw.evaluate(model.eval(), test, num_samples=50, progress=False, seed=0)
    trainer = lightning.Trainer(max_epochs=4 if quick else 30, enable_model_summary=False, **options)
    trainer.fit(model.train(), DataLoader(train, batch_size=20, shuffle=True))
    report = iw.evaluate(model.eval(), test, num_samples=50 if quick else 1000, progress=not quick, seed=0)
    print(report)
    assert report.nll < before.nll - 5, "training has not helped"


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
