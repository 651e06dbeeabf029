"""The HTML page of a reconstruction: pictures, numbers, what was assumed, where it comes from."""

from __future__ import annotations

import html
from pathlib import Path

import xarray as xr

from assimilate.report.colours import Scale
from assimilate.report.style import CSS
from assimilate.storage import write_text
from imaging.measurement import SEVERAL
from imaging.report.figures import data_uri
from imaging.report.panels import Panel
from imaging.result import concerns

EXACTNESS = {
    "exact": "draws from the posterior of this prior, up to its number of steps; what the prior does not know, the "
    "error bars do not either",
    "consistent": "tends to the posterior of this prior with more particles or iterations",
    "biased": "approximates the posterior: its error bars may be too narrow or too wide (`assimilate scorecard` "
    "measures by how much)",
    "point": "gives one answer; there are no error bars",
}
"""What an exactness class means for a reader."""

STYLE = """
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(190px,1fr));gap:1rem .9rem}
.gallery figure img{image-rendering:pixelated;object-fit:contain;background:#e2e5e8}
.ramp{height:.55rem;border-radius:3px;margin-top:.35rem}
.ends{display:flex;justify-content:space-between;font-size:.72rem;color:var(--soft);font-variant-numeric:tabular-nums}
.assumed li{margin:.25rem 0}.assumed{margin:0;padding-left:1.15rem;font-size:.93rem}
.warn{border-color:#e8c98a;background:#fffaf0}
"""


def write_page(result: xr.Dataset, rows: list[list[Panel]], folder: Path) -> Path:
    """Write `report.html`."""
    title = html.escape(_title(result))
    parts = [
        header(result),
        warnings_of(result),
        *(gallery(panels, k, len(rows)) for k, panels in enumerate(rows)),
        numbers(result),
        assumed(result),
        provenance(result),
    ]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>'
        f"<style>{CSS}{STYLE}</style></head>\n<body><main>\n" + "\n".join(p for p in parts if p)
        + "\n</main></body></html>\n"
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def header(result: xr.Dataset) -> str:
    """Title and the facts in a line."""
    mean = result["image_mean"]
    size = " × ".join(str(mean.sizes[d]) for d in mean.dims if d != SEVERAL)
    count = result.sizes.get("sample", 1)
    facts = [
        f"{size} pixels",
        f"{count} samples" if count > 1 else "one answer",
        f"{int(result['evaluations'])} network evaluations a sample",
        f"{float(result['seconds']):.3g} s",
        str(result.attrs.get("device", "")),
    ]
    if SEVERAL in result.sizes:
        facts.insert(0, f"{result.sizes[SEVERAL]} measurements")
    listed = "".join(f"<li>{html.escape(fact)}</li>" for fact in facts if fact)
    return (
        f'<header><p class="kicker">Assimilate</p><h1>{html.escape(_title(result))}</h1>'
        f'<ul class="facts">{listed}</ul></header>'
    )


def warnings_of(result: xr.Dataset) -> str:
    """The concerns as a section; nothing where there are none."""
    items = "".join(f"<li>{html.escape(_sentence(one))}</li>" for one in concerns(result))
    return f'<section class="warn"><h2>Note</h2><ul class="assumed">{items}</ul></section>' if items else ""


def gallery(panels: list[Panel], index: int, count: int) -> str:
    """The pictures of one measurement."""
    title = "Pictures" if count == 1 else f"Measurement {index}"
    cells = []
    for panel in panels:
        height, width = panel.values.shape[:2]
        ratio = width / height if 0.5 <= height / width <= 2 else 1.0
        note = f"<small>{html.escape(panel.note)}</small>" if panel.note else ""
        fill = "" if ratio != 1.0 or height == width else "object-fit:fill;"
        cells.append(
            f"<figure><figcaption><b>{html.escape(panel.title)}</b>{note}</figcaption>"
            f'<img src="{data_uri(panel)}" alt="{html.escape(panel.title)}" style="{fill}aspect-ratio:{ratio:.4f}">'
            f"{legend(panel.scale)}</figure>"
        )
    return f'<section><h2>{title}</h2><div class="gallery">{"".join(cells)}</div></section>'


def legend(scale: Scale) -> str:
    """The colours of a scale, its ends and its middle."""
    colours = ",".join(colour for colour, _ in scale.legend())
    middle = (scale.low + scale.high) / 2
    units = "" if scale.units in ("", "1") else f" {html.escape(scale.units)}"
    return (
        f'<div class="ramp" style="background:linear-gradient(90deg,{colours})"></div><div class="ends">'
        f"<span>{scale.low:.3g}</span><span>{middle:.3g}{units}</span><span>{scale.high:.3g}</span></div>"
    )


def numbers(result: xr.Dataset) -> str:
    """Scores and cost, one row for each measurement."""
    columns = [(n, t) for n, t in _columns(result) if n in result]
    heads = "".join(f'<th scope="col" title="{html.escape(meaning(result, n))}">{t}</th>' for n, t in columns)
    several = SEVERAL in result.sizes
    rows = []
    for k in range(result.sizes.get(SEVERAL, 1)):
        one = result.isel({SEVERAL: k}) if several else result
        cells = "".join(f"<td>{_number(one[n])}</td>" for n, _ in columns)
        rows.append(f'<tr><th scope="row">{k if several else "all pixels"}</th>{cells}</tr>')
    return (
        '<section><h2>Numbers</h2><div class="scroll"><table><thead><tr>'
        f'<th scope="col">{"Measurement" if several else ""}</th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="note">χ² is the mean square residual of the samples in variances of the noise; 1 if operator, '
        "noise and posterior are right.</p></section>"
    )


def assumed(result: xr.Dataset) -> str:
    """What the result rests on, in words."""
    attrs = result.attrs
    units = str(result["image_mean"].attrs.get("units", "1"))
    data_units = str(result["measured"].attrs.get("units", "")) or "not stated"
    exactness = str(attrs.get("exactness", ""))
    lines = [
        f"Units: the image is in {units!r}; units of the measurement: {data_units}.",
        _known(attrs, "noise", "Noise, in the units of the measurement: {}."),
        _known(attrs, "operator", "Measured: {}."),
        _known(attrs, "prior", "Prior: {}."),
        _known(attrs, "prior_range", "Range of the prior's images: {}."),
        f"Solver: {attrs.get('solver_name', '')}, {exactness}: it {EXACTNESS.get(exactness, '')}.",
        _known(attrs, "image_units_note", "{}."),
        _known(result["measured"].attrs, "scaling", "Values of the measurement's file: {}."),
    ]
    items = "".join(f"<li>{html.escape(_sentence(line))}</li>" for line in lines if line)
    return f'<section><h2>What was assumed</h2><ul class="assumed">{items}</ul></section>'


def provenance(result: xr.Dataset) -> str:
    """Settings, references, seeds and versions."""
    named = {
        "Solver": "solver", "Reference": "solver_reference", "Training of the prior": "prior_record", "Seed": "seed",
        "Precision": "dtype", "Device": "device", "Version": "version", "Source": "source",
    }  # fmt: skip
    kept = [(label, str(result.attrs[key])) for label, key in named.items() if key in result.attrs]
    listed = "".join(f"<dt>{label}</dt><dd>{html.escape(text)}</dd>" for label, text in kept)
    return f'<section class="provenance"><h2>Provenance</h2><dl>{listed}</dl></section>'


def _columns(result: xr.Dataset) -> list[tuple[str, str]]:
    return [
        ("residual_chi_square", "χ²"), ("rmse", "RMSE"), ("psnr", "PSNR, dB"), ("coverage", "Coverage"),
        ("log_evidence", "Log evidence"), ("evaluations", "Evaluations"), ("seconds", "Seconds"),
    ]  # fmt: skip


def meaning(result: xr.Dataset, name: str) -> str:
    """What a number is."""
    return str(result[name].attrs.get("long_name", name))


def _number(value: xr.DataArray) -> str:
    number = float(value)
    return f"{number:.0f}" if value.dtype.kind in "iu" else f"{number:.4g}"


def _title(result: xr.Dataset) -> str:
    return _sentence(str(result.attrs.get("title", "Reconstruction")))


def _known(attrs: dict, key: str, text: str) -> str:
    return text.format(attrs[key]) if str(attrs.get(key, "")) else ""


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
