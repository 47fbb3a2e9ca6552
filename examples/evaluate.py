"""An evidence report of a VAE on handwritten digits: its NLL with errors, certified, and whether to believe it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from _common import Images, digits, fit, options_parser, print_table, pyplot, save_figure
from digits import Autoencoder

import iwbounds as iw
from iwbounds.plots import plot_bound, plot_report, plot_weights


@dataclass(frozen=True)
class Findings:
    """What there is to show of one model."""

    report: iw.EvidenceReport
    """Of all test images."""
    few: iw.EvidenceReport
    """The same with a tenth of the samples."""
    hardest: iw.CertifiedEvidence
    """Of the image that the model explains least, drawn until certified."""
    log_weights: torch.Tensor
    """``(K, 2)`` of the images that the model explains best and least."""


def trained(images: Images, options: argparse.Namespace) -> Autoencoder:
    torch.manual_seed(options.seed)
    model = Autoencoder(images, options.hidden, options.latent).to(options.device)
    settings = {"epochs": options.epochs, "learning_rate": 4e-3, "seed": options.seed, "label": "training"}
    fit(model, images, iw.DReG(), 20, **settings)
    return model.eval()


def examine(model: Autoencoder, images: Images, options: argparse.Namespace) -> Findings:
    settings = {"confidence": options.confidence, "seed": options.seed}
    report = iw.evaluate(model, images.test, num_samples=options.samples, state_file=options.state_file, **settings)
    few = iw.evaluate(model, images.test, num_samples=max(2, options.samples // 10), progress=False, **settings)
    least, best = report.worst(1)[0][0], int(report.log_evidence.argmax())
    torch.manual_seed(options.seed)
    hardest = iw.certify(
        *model(images.test[[least]]),
        tolerance=options.tolerance,
        confidence=options.confidence,
        max_samples=options.max_samples,
        progress=True,
    )
    with torch.no_grad():
        log_weights = iw.estimate(*model(images.test[[best, least]]), num_samples=options.samples).log_weights
    return Findings(report, few, hardest, log_weights)


def check(findings: Findings) -> None:
    """What must be true of every run; a failure of the last two would be a chance of less than one in a thousand."""
    report, few = findings.report, findings.few
    assert report.certified_nll is not None, report.reasons_against_certifying
    assert abs(report.certified_nll - report.nll - report.slack) < 1e-9
    assert report.num_dead == report.num_nonfinite == 0
    # More samples explain the data better on average: a tenth of them must not win by more than its own noise.
    assert report.nll < few.nll + 4 * (few.sampling_error + report.sampling_error)
    assert 64 * 0.1 < report.nll < 64 * 0.6931, "worse than fair coins, or too good to be true"


def draw_figure(findings: Findings, options: argparse.Namespace) -> None:
    figure, axes = pyplot().subplots(2, 3, figsize=(13.5, 7.6), layout="constrained")
    plot_report(findings.report, axes[0])
    plot_weights(findings.log_weights[:, 1], axes[1, :2])
    axes[1, 0].set_title("Log-weights of the worst image", fontsize=11)
    plot_bound(findings.log_weights[:, 0], [iw.IWAE(), iw.ELBO()], axes=axes[1, 2])
    axes[1, 2].set_title("Bounds against K: the best image", fontsize=11)
    save_figure(figure, options.out)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = options_parser(__doc__, "evaluate.png")
    parser.add_argument("--quick", action="store_true", help="a tiny model and few samples: a few seconds")
    parser.add_argument("--epochs", type=int, help="default: 50, or 2 with --quick")
    parser.add_argument("--samples", type=int, help="per image; default: 5000, or 300 with --quick")
    parser.add_argument("--latent", type=int, help="dimensions of z; default: 10, or 3 with --quick")
    parser.add_argument("--hidden", type=int, help="units in each of two layers; default: 100, or 20 with --quick")
    parser.add_argument("--confidence", type=float, default=0.99)
    parser.add_argument("--tolerance", type=float, default=0.25, help="nats, to certify the worst image to")
    parser.add_argument("--max-samples", type=int, help="for that image; default: 300 000, or 3000 with --quick")
    parser.add_argument("--state-file", help="keep the evaluation's state here, and go on from it")
    options = parser.parse_args(argv)
    defaults = {"epochs": (50, 2), "samples": (5000, 300), "latent": (10, 3), "hidden": (100, 20)}
    for name, (full, quick) in (defaults | {"max_samples": (300_000, 3000)}).items():
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else full)
    return options


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    images = digits(options.device)
    findings = examine(trained(images, options), images, options)
    check(findings)
    rows = [
        [
            f"{report.num_samples} samples",
            f"{report.nll:.3f} ± {report.standard_error:.3f}",
            f"{report.certified_nll:.3f}",
            f"{report.ess.median():.0f}",
            f"{report.num_untrusted} of {report.num_data}",
        ]
        for report in (findings.few, findings.report)
    ]
    print_table(["evaluation", "test NLL", "certified NLL", "median ESS", "k above threshold"], rows)
    print(f"\n{findings.report}")
    print(f"\nThe worst image by itself: {findings.hardest}")
    draw_figure(findings, options)


if __name__ == "__main__":
    main()
