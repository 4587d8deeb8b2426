"""The network as a picture: a line a layer from top to bottom, arcs for what it reads, a bar for the channels it makes.

Channels that are cut together have one colour; grey ones stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from xml.etree.ElementTree import Element, SubElement, tostring

from network.types import Layer, Network

__all__ = ["Row", "draw", "rows"]

LINE, MARGIN, ARCS, BAR, TEXT, LETTER = 17, 16, 150, 340, 250, 6.4  # pixels
LONGEST = 46  # letters of a name
STAY = "#9aa0a6"
STYLE = """
text { font: 11px ui-sans-serif, system-ui, sans-serif; fill: #24292f }
.title { font-size: 15px; font-weight: 600 }
.quiet { fill: #6e7781 }
path { fill: none; stroke-width: 1.3; opacity: .8 }
.back { fill: #ffffff }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .quiet { fill: #8d96a0 } .back { fill: #0d1117 } }
"""


@dataclass(frozen=True, slots=True)
class Row:
    """A layer that is drawn, and the rows whose outputs reach it through layers that are not."""

    layer: Layer
    sources: tuple[int, ...]


def rows(net: Network) -> list[Row]:
    """The layers that multiply, join or end: norms, activations and movement belong to the row above."""
    read = {name for layer in net.layers for name in layer.inputs}
    reached: dict[str, frozenset[int]] = {}
    found: list[Row] = []
    for layer in net.layers:
        sources = frozenset().union(*(reached[name] for name in layer.inputs))
        if layer.macs(net.widths) or len(sources) > 1 or (layer.name not in read and not sources):
            found.append(Row(layer, tuple(sorted(sources))))
            sources = frozenset((len(found) - 1,))
        reached[layer.name] = sources
    return found


def draw(net: Network, title: str) -> str:
    """An SVG document, as high as the network is deep; the mouse on a bar names its groups."""
    drawn = rows(net)
    names = 24 + LETTER * max(len(_name(row)) for row in drawn)
    width, height = 2 * MARGIN + ARCS + names + BAR + TEXT, 3 * MARGIN + 34 + LINE * len(drawn)
    svg = Element("svg", xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width:.0f} {height}", width=f"{width:.0f}")
    SubElement(svg, "style").text = STYLE
    SubElement(svg, "rect", {"class": "back", "width": f"{width:.0f}", "height": str(height)})
    _write(svg, MARGIN, MARGIN + 12, title, "title")
    _write(svg, MARGIN, MARGIN + 30, _totals(net), "quiet")
    colours = {group.name: f"hsl({(number * 137.5) % 360:.0f} 62% 52%)" for number, group in enumerate(net.groups)}
    widest = max((row.layer.c_out.at(net.widths) for row in drawn), default=1)
    for number, row in enumerate(drawn):
        _arcs(svg, drawn, number, colours)
        _write(svg, MARGIN + ARCS + 12, _y(number) + 4, _name(row))
        _row(svg, net, row, MARGIN + ARCS + names, _y(number), BAR / widest, colours)
    return tostring(svg, encoding="unicode")


def _y(number: int) -> float:
    return 2 * MARGIN + 34 + LINE * (number + 0.5)


def _arcs(svg: Element, drawn: list[Row], number: int, colours: dict[str, str]) -> None:
    """A straight line from the row above; from further up an arc, the wider the longer."""
    x, y = MARGIN + ARCS, _y(number)
    for source in drawn[number].sources:
        bend = 0 if number - source == 1 else min(ARCS - 8, 10 + 16 * sqrt(number - source))
        made = drawn[source].layer.c_out.groups
        SubElement(
            svg,
            "path",
            d=f"M{x} {_y(source)}C{x - bend * 4 / 3:.1f} {_y(source)} {x - bend * 4 / 3:.1f} {y} {x} {y}",
            stroke=colours[made[0]] if made else STAY,
        )


def _row(svg: Element, net: Network, row: Row, left: float, y: float, scale: float, colours: dict[str, str]) -> None:
    layer = row.layer
    made = [(name, multiplicity * net.group(name).width) for name, multiplicity in layer.c_out.terms]
    parts = [*((colours[name], name, n) for name, n in made), (STAY, "stays", layer.c_out.fixed)]
    SubElement(svg, "circle", cx=str(MARGIN + ARCS), cy=str(y), r="3", fill=parts[0][0])
    for colour, name, channels in parts:
        if channels:
            size = {"x": f"{left:.1f}", "y": str(y - 5), "width": f"{max(1.0, channels * scale):.1f}", "height": "10"}
            bar = SubElement(svg, "rect", size, fill=colour, rx="1")
            SubElement(bar, "title").text = f"{name}: {channels} channels"
            left += channels * scale
    _write(svg, left + 6, y + 4, _facts(net, layer), "quiet")


def _facts(net: Network, layer: Layer) -> str:
    macs = layer.macs(net.widths)
    place = "×".join(map(str, layer.spec.spatial_out))
    return f"{layer.c_out.at(net.widths)}{f' at {place}' if place else ''}  {layer.spec.op}" + (
        f"  {macs / 1e6:,.1f} M" if macs else ""
    )


def _totals(net: Network) -> str:
    free = sum(group.width for group in net.groups)
    return (
        f"{net.macs() / 1e9:.3f} GMAC, {net.parameter_count() / 1e6:.3f} M parameters; "
        f"{free} channels in {len(net.groups)} groups, one colour each; grey ones stay"
    )


def _name(row: Row) -> str:
    name = row.layer.module or row.layer.name
    return name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}"


def _write(svg: Element, x: float, y: float, text: str, kind: str = "") -> None:
    SubElement(svg, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}"} | ({"class": kind} if kind else {})).text = text
