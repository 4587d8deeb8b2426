"""report.html: the report for people, one file that needs no network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import nn

from compress import charts, pictures
from compress.metrics import Examiner
from network.files import atomic

__all__ = ["METRICS", "render", "write_page"]

METRICS = {
    "psnr_db": "PSNR to the original, dB",
    "ssim": "SSIM to the original",
    "agreement": "agreement with the original",
    "kl": "KL to the original, nats (lower is better)",
    "relative_error": "relative error (lower is better)",
    "lpips": "LPIPS to the original (lower is better)",
    "fid": "FID to the original (lower is better)",
    "true_psnr_db": "PSNR to the truth, dB",
    "true_ssim": "SSIM to the truth",
    "y_psnr_db": "PSNR to the truth, Y, dB",
    "y_ssim": "SSIM to the truth, Y",
}


def write_page(
    path: Path, report: Mapping[str, Any], task: Any, examiner: Examiner, models: Mapping[str, nn.Module]
) -> None:
    """Write the page with its pictures and charts, atomically."""
    text = render(report, pictures.rows(task, examiner, models))
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def render(report: Mapping[str, Any], rows: list[list[pictures.Picture]]) -> str:
    """The page as HTML."""
    environment = Environment(loader=PackageLoader("compress", "."), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"count": _count, "metric": _title, "number": _number}
    names = list(dict.fromkeys(name for quality in report["quality"].values() for name in quality))
    return environment.get_template("page.html").render(
        report=report,
        pictures=rows,
        metrics=names,
        layer_chart=charts.layer_times(report["layers"]),
        width_chart=charts.widths(report["full_widths"], report["widths"]),
        curve_chart=charts.curves(report["stages"]),
    )


def _title(name: str) -> str:
    return METRICS.get(name, name)


def _number(value: float | None, digits: int = 4) -> str:
    return "no number" if value is None else f"{value:.{digits}g}"


def _count(value: float) -> str:
    """1234567 → 1.23 M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"
