"""A lab on MNIST: from an autoencoder to a VAE to an IWAE, one change of the objective at a time.

    python examples/lab.py --data mnist.npz     # or without --data, where torchvision is installed: it downloads MNIST
    python examples/lab.py --quick              # scikit-learn's 8×8 digits, in seconds

One network is trained three times. What changes from lesson to lesson is a few lines, and they are all in this file:

1. an autoencoder: log p(x | z) at the encoder's mean. It copies images, and cannot make one;
2. a VAE: one sample of z, and the price log q(z | x) − log p(z) of using it: the ELBO;
3. the pitfall: why the mean of K weights has to be taken in log space;
4. an IWAE: the log of that mean, K = 10. By hand first, then by one call of iwbounds;
5. Jensen's gap: how fast the bound closes with K, and the variance that says so beforehand;
6. the account: which part of what the table shows is the number of samples, the training, the estimator.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from _common import (
    Images,
    bernoulli_log_prob,
    digits,
    handwriting,
    mlp,
    options_parser,
    print_table,
    pyplot,
    save_figure,
)
from digits import show_rows
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from tqdm import tqdm

import iwbounds as iw
from iwbounds.plots.style import BLUE, VERMILION, plain

Objective = Callable[["Network", Tensor], Tensor]
"""From a batch of images to one number each, in nats, to be made large."""


class Network(nn.Module):
    """What all lessons train: z ~ N(0, I), pixels ~ Bernoulli(decoder(z)), q(z | x) a Gaussian from the encoder."""

    def __init__(self, images: Images, hidden: int, latent: int) -> None:
        super().__init__()
        pixels = images.train.shape[1]
        self.latent = latent
        self.encoder = mlp(pixels, hidden, hidden, 2 * latent)
        self.decoder = mlp(latent, hidden, hidden, pixels)
        # Begun at the mean image, the decoder need not spend its first epoch on learning that borders are white.
        self.decoder[-1].bias.data = images.mean_logit.cpu()

    def posterior(self, x: Tensor) -> Independent:
        """q(z | x). The encoder gives log σ, since σ has to be positive."""
        mean, log_scale = self.encoder(2 * x - 1).chunk(2, -1)
        return Independent(Normal(mean, log_scale.exp()), 1)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(z) + log p(x | z), for ``z`` of shape (batch, latent) or (K, batch, latent)."""
        return Normal(0.0, 1.0).log_prob(z).sum(-1) + bernoulli_log_prob(self.decoder(z), x)

    def forward(self, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Independent]:
        """The two things that iwbounds asks for: a log-joint and a proposal."""
        return lambda z: self.log_joint(x, z), self.posterior(x)


# Lesson 1. An autoencoder has a code, but no distribution of codes.


def autoencoder(net: Network, x: Tensor) -> Tensor:
    """log p(x | z) at z = the encoder's mean. The encoder's σ takes no part and stays untrained."""
    return bernoulli_log_prob(net.decoder(net.posterior(x).mean), x)


# Lesson 2. A VAE draws its code, and pays for what the code says beyond the prior.


def vae(net: Network, x: Tensor) -> Tensor:
    """The ELBO from one draw: log p(x, z) − log q(z | x), a lower bound of log p(x) on average."""
    q = net.posterior(x)
    # rsample, not sample: z = μ + σ ε, so that the gradient reaches μ and σ through z.
    z = q.rsample()
    return net.log_joint(x, z) - q.log_prob(z)


# Lesson 3. The weights of an image are as small as e^−100: their mean must be taken in log space.


def naive(log_w: Tensor) -> Tensor:
    """The formula as it is written. e^−104 is 0 in float32, so the log is −inf and its gradient NaN."""
    return log_w.exp().mean(0).log()


def naive_with_epsilon(log_w: Tensor) -> Tensor:
    """A widespread repair that hides the fault: the value stops at log 1e-7 = −16.1, and the gradient is 0."""
    return (log_w.exp().mean(0) + 1e-7).log()


MEANS = {"log(mean(exp))": naive, "log(mean(exp) + 1e-7)": naive_with_epsilon, "iw.log_mean_exp": iw.log_mean_exp}


def value_and_gradient(mean: Callable[[Tensor], Tensor], log_w: Tensor) -> tuple[Tensor, Tensor]:
    leaf = log_w.detach().clone().requires_grad_()
    value = mean(leaf)
    value.backward()
    return value.detach(), leaf.grad


def show_underflow(log_w: Tensor) -> None:
    """Two weights of textbook size, and those of the image that the VAE explains least."""
    cases = {"(-300, -200)": torch.tensor([-300.0, -200.0]), "worst image": log_w[:, log_w.mean(0).argmin()]}
    rows = []
    for case, weights in cases.items():
        for name, mean in MEANS.items():
            value, gradient = value_and_gradient(mean, weights)
            rows.append([f"{case}: {name}", f"{value:.2f}", f"{gradient.sum():.2f}"])
    # The weights' gradients are shares of 1: any other sum has lost the training signal.
    print_table(["log-weights: formula", "value", "gradient's sum"], rows)
    value, gradient = value_and_gradient(iw.log_mean_exp, cases["(-300, -200)"])
    assert torch.allclose(value, -200 - torch.tensor(2.0).log())
    assert torch.allclose(gradient, torch.tensor([0.0, 1.0]))  # e^−100 of the signal goes to the first
    assert value_and_gradient(naive, cases["(-300, -200)"])[0] == -torch.inf
    assert not value_and_gradient(naive_with_epsilon, cases["(-300, -200)"])[1].any()


# Lesson 4. An IWAE is the VAE's objective with a mean of K weights inside the log.


def iwae_by_hand(net: Network, x: Tensor, num_samples: int) -> Tensor:
    """log (1/K) Σ_k p(x, z_k) / q(z_k | x). The mean runs over the samples of *one* image, axis 0: never the batch."""
    q = net.posterior(x)
    z = q.rsample((num_samples,))
    return iw.log_mean_exp(net.log_joint(x, z) - q.log_prob(z))


def iwae(num_samples: int, gradient: iw.Gradient) -> Objective:
    """The same by the library. Its gradient can be exchanged without a change of the value: that is lesson 6."""
    return lambda net, x: iw.estimate(*net(x), iw.IWAE(), gradient, num_samples=num_samples).value


def check_by_hand(net: Network, x: Tensor, num_samples: int) -> None:
    """From the same noise, our own lines and the library's call have one value and one gradient."""
    found = []
    for objective in (lambda net, x: iwae_by_hand(net, x, num_samples), iwae(num_samples, iw.Reparameterized())):
        torch.manual_seed(0)
        net.zero_grad()
        value = objective(net, x)
        value.mean().backward()
        found.append((value.detach(), torch.cat([p.grad.flatten() for p in net.parameters()])))
    (value, slope), (library_value, library_slope) = found
    assert torch.allclose(value, library_value, rtol=1e-5)
    assert (slope - library_slope).norm() < 1e-3 * slope.norm()


def train(name: str, objective: Objective, images: Images, options: argparse.Namespace) -> tuple[Network, list[float]]:
    """The network after ascent on an objective, and the objective's mean in each epoch."""
    # Every lesson starts from the same parameters and sees the same batches, so that the objective alone differs.
    torch.manual_seed(options.seed)
    net = Network(images, options.hidden, options.latent).to(options.device)
    generator = torch.Generator().manual_seed(options.seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=options.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs, options.learning_rate / 20)
    curve = []
    for _ in (bar := tqdm(range(options.epochs), desc=f"{name:<12}", unit="epoch", leave=False)):
        values = []
        for x in images.batches(options.batch_size, generator):
            value = objective(net, x)
            optimizer.zero_grad()
            (-value.mean()).backward()
            optimizer.step()
            values.append(value.detach())
        schedule.step()
        curve.append(torch.cat(values).mean().item())
        bar.set_postfix(nats=f"{curve[-1]:.2f}")
    return net, curve


@torch.no_grad()
def show(nets: dict[str, Network], images: Images, options: argparse.Namespace, name: str) -> None:
    """A picture of what each network makes of test images, and of draws of the prior."""
    figure, axes = pyplot().subplots(1, 2, figsize=(12, 0.5 + 0.47 * (len(nets) + 1)), layout="constrained")
    x = images.test[:: max(1, len(images.test) // 12)][:12]
    z = torch.randn(12, options.latent, generator=torch.Generator().manual_seed(options.seed)).to(x.device)
    copies = {name: net.decoder(net.posterior(x).mean).sigmoid() for name, net in nets.items()}
    show_rows(axes[0], "Test images and their reconstructions", {"data": x} | copies)
    inventions = {name: net.decoder(z).sigmoid() for name, net in nets.items()}
    show_rows(axes[1], "Decoded draws of the prior N(0, I)", inventions)
    save_figure(figure, options.out / f"{name}.png")
    pyplot().close(figure)


# Lesson 5. The bound's distance from log p(x) falls as Var(w/p(x)) / 2K, once K is large against that variance.


@torch.no_grad()
def log_weights(net: Network, x: Tensor, num_samples: int) -> Tensor:
    """(K, images). In chunks, since 10 000 decoded samples of 100 images would need 3 GB."""
    chunk = min(num_samples, 200)
    return iw.estimate(*net(x), num_samples=num_samples, chunk_size=chunk).log_weights


def jensen_gaps(log_w: Tensor) -> tuple[list[int], Tensor, Tensor]:
    """Numbers of samples K, and for each K and image the gap of the bound and Var/2K as its prediction."""
    total = len(log_w)
    counts = [k for k in (1, 2, 5, 10, 20, 50, 100, 200, 500) if k <= total // 20]
    evidence = iw.log_mean_exp(log_w)
    # MIWAE of N/K groups is the mean of N/K independent bounds with K samples each: less noise than one of them.
    gaps = [evidence - iw.MIWAE(total // k)(log_w[: total // k * k]) for k in counts]
    variance = (2 * (log_w - evidence)).exp().mean(0) - 1
    return counts, torch.stack(gaps), torch.stack([variance / (2 * k) for k in counts])


def show_gap(nets: dict[str, Network], images: Images, options: argparse.Namespace) -> None:
    """The median image, as a few images with a very large variance would rule a mean."""
    figure, axis = pyplot().subplots(figsize=(6.5, 4.2), layout="constrained")
    x = images.test[:: max(1, len(images.test) // 100)][:100]
    for (name, net), colour, marker in zip(nets.items(), (BLUE, VERMILION), "os", strict=True):
        torch.manual_seed(options.seed)
        counts, gaps, predicted = jensen_gaps(log_weights(net, x, options.gap_samples).double())
        gap, guess = gaps.median(1).values, predicted.median(1).values
        axis.loglog(counts, gap, marker + "-", color=colour, label=f"{name}: log p(x) − bound")
        axis.loglog(counts, guess, "--", color=colour, label=f"{name}: Var(w / p(x)) / 2K")
        print(f"{name}: gap {gap[0]:.2f} at K = 1, {gap[-1]:.4f} at K = {counts[-1]}, predicted {guess[-1]:.4f}")
        assert (gap.diff() < 0).all(), "the bound of independent samples is tighter for every larger K"
        # A delta-method expansion: good to a third where the predicted gap is small, and no promise before.
        assert guess[-1] > 0.1 or abs(guess[-1] / gap[-1] - 1) < 0.35
    plain(axis, "Jensen's gap of the median test image", "samples K", "nats")
    axis.legend(fontsize=9, frameon=False)
    save_figure(figure, options.out / "4_jensen_gap.png")
    pyplot().close(figure)


# Lesson 6. The account.


def mean_bound(net: Network, x: Tensor, num_samples: int) -> float:
    """With K samples, over these images; the same noise for every network."""
    report = iw.evaluate(net, x, num_samples=num_samples, seed=0, progress=False)
    return report.log_evidence.mean().item()


def account(nets: dict[str, Network], images: Images, options: argparse.Namespace) -> dict[str, list[float]]:
    """By network: the bound of training images at K = 1 and at the K of the IWAE, and the test NLL at a large K."""
    k = options.samples
    x = next(images.batches(options.account_images, torch.Generator().manual_seed(options.seed + 1)))
    found = {
        name: [mean_bound(net, x, 1), mean_bound(net, x, k), -mean_bound(net, images.test, options.evaluation_samples)]
        for name, net in nets.items()
    }
    header = ["network", "bound, K = 1", f"bound, K = {k}", f"test NLL, K = {options.evaluation_samples}"]
    print_table(header, [[name, *(f"{v:.2f}" for v in values)] for name, values in found.items()])
    return found


def explain(found: dict[str, list[float]], k: int) -> None:
    """From the VAE's own bound to the IWAE's, one difference at a time."""
    (vae_1, vae_k, vae_nll), (_, iwae_k, iwae_nll), (_, dreg_k, dreg_nll) = (
        found[name] for name in ("VAE", "IWAE", "IWAE, DReG")
    )
    print(f"\nThe VAE's bound (K = 1) and the IWAE's (K = {k}) are {dreg_k - vae_1:.2f} nats apart, of which")
    print(f"  {vae_k - vae_1:+.2f} the number of samples: the same VAE, looked at with K = {k};")
    print(f"  {iwae_k - vae_k:+.2f} training on that bound: another network, looked at with the same K;")
    print(f"  {dreg_k - iwae_k:+.2f} the gradient's estimator: doubly reparameterised instead of reparameterised.")
    print(f"Test NLL: {vae_nll - iwae_nll:.2f} better by training, {iwae_nll - dreg_nll:.2f} by the estimator.")
    # The ending: better in the objective that it was trained on, and on unseen images with one K for both.
    assert min(iwae_k, dreg_k) > vae_1
    assert max(iwae_nll, dreg_nll) < vae_nll


def lessons(images: Images, options: argparse.Namespace) -> None:
    k = options.samples
    nets, curves = {}, {}

    print("\n1. Autoencoder: log p(x | z) at the encoder's mean.")
    nets["autoencoder"], curves["autoencoder"] = train("autoencoder", autoencoder, images, options)
    # Nothing ties the codes to N(0, I): they lie far outside, and draws of N(0, I) are no codes.
    with torch.no_grad():
        spread = nets["autoencoder"].posterior(images.test).mean.std().item()
    print(f"{curves['autoencoder'][-1]:.2f} nats; its codes have a standard deviation of {spread:.1f}, the prior 1.")
    show(nets, images, options, "1_autoencoder")

    print("\n2. VAE: the same with a drawn code and its price, the ELBO.")
    nets["VAE"], curves["VAE"] = train("VAE", vae, images, options)
    show(nets, images, options, "2_vae")

    print("\n3. The pitfall: the mean of weights that are too small to be numbers.")
    torch.manual_seed(options.seed)
    show_underflow(log_weights(nets["VAE"], images.test[:100], k))

    print(f"\n4. IWAE: the log of the mean of K = {k} weights.")
    check_by_hand(nets["VAE"], images.test[:20], k)
    nets["IWAE"], curves["IWAE"] = train("IWAE", iwae(k, iw.Reparameterized()), images, options)
    show(nets, images, options, "3_iwae")

    print("\n5. Jensen's gap: log p(x) − bound, and the variance that predicts it.")
    show_gap({name: nets[name] for name in ("VAE", "IWAE")}, images, options)

    print("\n6. The account.")
    nets["IWAE, DReG"], curves["IWAE, DReG"] = train("IWAE, DReG", iwae(k, iw.DReG()), images, options)
    del nets["autoencoder"]  # its σ was never trained, so that it has no proposal and no bound worth the name
    found = account(nets, images, options)
    explain(found, k)
    early = ", ".join(f"{name} {curves[name][0]:.1f} → {curves[name][-1]:.1f}" for name in nets)
    print(f"Mean training bound of the first and the last epoch, each with its own K: {early}.")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = options_parser(__doc__.splitlines()[0], "lab")
    parser.add_argument("--data", type=Path, help="an .npz of MNIST with train_images, test_images: (N, 28, 28) uint8")
    parser.add_argument("--quick", action="store_true", help="small network; the 8×8 digits unless --data is given")
    parser.add_argument("--samples", type=int, default=10, help="K of the IWAE")
    parser.add_argument("--latent", type=int, default=10, help="dimensions of z")
    parser.add_argument("--batch-size", type=int, default=100)
    sizes = {  # full, quick
        "hidden": (200, 60, "units in each of two layers"),
        "epochs": (10, 25, "of each training"),
        "learning_rate": (1e-3, 4e-3, "of Adam, falling to a twentieth"),
        "test_images": (1000, 450, "how many test images to use"),
        "evaluation_samples": (1000, 300, "K of the test NLL"),
        "gap_samples": (10_000, 2000, "per image, to draw Jensen's gap from"),
        "account_images": (5000, 1000, "training images for the account"),
    }
    for name, (full, quick, what) in sizes.items():
        text = f"{what}; default: {full}, or {quick} with --quick"
        parser.add_argument("--" + name.replace("_", "-"), type=type(full), help=text)
    parser.set_defaults(threads=2)
    options = parser.parse_args(argv)
    for name, (full, quick, _) in sizes.items():
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else full)
    return options


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    if options.quick and options.data is None:
        images = digits(options.device)
    else:
        images = handwriting(options.data, options.test_images, options.device)
    lessons(images, options)


if __name__ == "__main__":
    main()
