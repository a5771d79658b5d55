"""A lab's graph as SVG: guests in a row, heaps as bars above them, networks as bars below.

Live paths are arcs from guest to guest, those through memory on the heaps' side and those over the network on
the networks' side, stacked so that none crosses the other's label. The picture needs nothing but itself, and
follows the reader's light or dark theme.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from lab.graph import OUTSIDE, Graph, Link, Node, Path, describe_path

_MARGIN = 28
_TITLE = 30
_GUEST = 156, 68
_GAP = 44
_LANE = 34
_LANE_STEP = 50
_ARC = 34
"""Height of one level of arcs, its label included."""
_ROOM = 30
"""Between the guests and the nearest bar: for addresses."""
_CORNER = 10

#: The style of paths of each kind.
_CLASS = {"shared": "shared", "network": "over"}

# No variables: several viewers do not know them.
_STYLE = """\
  text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2328; }
  .name { font-weight: 600; font-size: 14px; }
  .note { fill: #59636e; font-size: 12px; }
  .title { font-weight: 600; font-size: 16px; }
  .paper { fill: #ffffff; }
  .guest { fill: #f6f8fa; stroke: #8c959f; stroke-width: 1.5; }
  .outside { fill: none; stroke: #59636e; stroke-width: 1.5; stroke-dasharray: 4 4; }
  .heap { fill: #dafbe1; stroke: #1a7f37; stroke-width: 1.5; }
  .network { fill: #ddf4ff; stroke: #0969da; stroke-width: 1.5; }
  .wire { fill: none; stroke-width: 1.5; }
  .wire.h { stroke: #1a7f37; }
  .wire.n { stroke: #0969da; }
  .path { fill: none; stroke-width: 3; }
  .path.shared { stroke: #1a7f37; }
  .path.over { stroke: #0969da; stroke-width: 2; stroke-dasharray: 6 4; }
  .head.shared { fill: #1a7f37; }
  .head.over { fill: #0969da; }
  .pill { fill: #ffffff; stroke-width: 1.2; }
  .pill.shared { stroke: #1a7f37; }
  .pill.over { stroke: #0969da; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; }
    .note { fill: #9198a1; }
    .paper, .pill { fill: #0d1117; }
    .guest { fill: #151b23; stroke: #656c76; }
    .heap { fill: #12261e; }
    .network { fill: #121d2f; }
    .heap, .wire.h, .path.shared, .pill.shared { stroke: #3fb950; }
    .network, .wire.n, .path.over, .pill.over { stroke: #4493f8; }
    .head.shared { fill: #3fb950; }
    .head.over { fill: #4493f8; }
  }
"""


@dataclass(frozen=True)
class _Lane:
    """A heap or a network: a bar from `left` to `right`, in row `row` counted from the guests."""

    node: Node
    left: float
    right: float
    row: int


@dataclass(frozen=True)
class _Arc:
    """A path, at a level counted from the guests. `start` and `end` are where it leaves and enters."""

    path: Path
    start: float
    end: float
    level: int


def render(graph: Graph) -> str:
    """The picture."""
    return _Picture(graph).render()


class _Picture:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._paths = graph.paths or ()
        names = [node.name for node in graph.guests]
        if any(OUTSIDE in (path.client, path.server) for path in self._paths):
            names.append(OUTSIDE)
        self._left = {name: _MARGIN + index * (_GUEST[0] + _GAP) for index, name in enumerate(names)}
        self._heaps = self._lay_lanes(graph.heaps, graph.memberships)
        self._networks = self._lay_lanes(graph.networks, graph.attachments)
        self._shared = self._lay_arcs("shared")
        self._over = self._lay_arcs("network")
        self._width = max(2 * _MARGIN + len(names) * (_GUEST[0] + _GAP) - _GAP, 420)
        self._top = _MARGIN + _TITLE + _rows(self._heaps) * _LANE_STEP + _levels(self._shared) * _ARC + _ROOM
        self._bottom = self._top + _GUEST[1]
        self._parts: list[str] = []

    def _lay_lanes(self, nodes: Sequence[Node], links: Sequence[Link]) -> list[_Lane]:
        """Bars as near to the guests as those before them allow."""
        lanes: list[_Lane] = []
        for node in nodes:
            places = [self._left[link.guest] for link in links if link.to == node.name]
            if not places:
                places = list(self._left.values())[:1]
            left, right = min(places), max(places) + _GUEST[0]
            row = 0
            while any(
                each.row == row and each.left < right + 16 and left < each.right + 16 for each in lanes
            ):
                row += 1
            lanes.append(_Lane(node, left, right, row))
        return lanes

    def _lay_arcs(self, kind: str) -> list[_Arc]:
        """Arcs as low as those before them allow, short ones first."""
        paths = [path for path in self._paths if path.kind == kind]
        paths.sort(key=lambda path: (abs(self._left[path.client] - self._left[path.server]), path.client))
        ports = self._lay_ports(paths)
        arcs: list[_Arc] = []
        for number, path in enumerate(paths):
            start, end = ports[number, 0], ports[number, 1]
            left, right = _reach(start, end)
            level = 0
            while any(arc.level == level and _touches(arc, left, right) for arc in arcs):
                level += 1
            arcs.append(_Arc(path, start, end, level))
        return arcs

    def _lay_ports(self, paths: Sequence[Path]) -> dict[tuple[int, int], float]:
        """Where path number N leaves (N, 0) and enters (N, 1).

        At a guest, the ends of paths to the left are left of those to the right, and of two to the same side
        the shorter one is nearer to that side: then their arcs nest and do not cross.
        """
        at: dict[str, list[tuple[float, tuple[int, int]]]] = {name: [] for name in self._left}
        for number, path in enumerate(paths):
            distance = self._left[path.server] - self._left[path.client]
            at[path.client].append((_rank(distance), (number, 0)))
            at[path.server].append((_rank(-distance), (number, 1)))
        ports = {}
        for name, ends in at.items():
            for index, (_, end) in enumerate(sorted(ends)):
                share = 0.16 + 0.72 * (index + 1) / (len(ends) + 1)
                ports[end] = self._left[name] + _GUEST[0] * share
        return ports

    def render(self) -> str:
        below = self._bottom + _ROOM + _levels(self._over) * _ARC
        height = below + _rows(self._networks) * _LANE_STEP + _MARGIN
        self._text(_MARGIN, _MARGIN + 10, f"lab {self._graph.lab}", "title", anchor="start")
        self._draw_legend()
        heaps = {lane.node.name: self._heap_y(lane.row) for lane in self._heaps}
        networks = {lane.node.name: below + lane.row * _LANE_STEP for lane in self._networks}
        edges = {name: y + _LANE for name, y in heaps.items()}
        self._draw_wires(self._graph.memberships, "h", self._top, edges)
        self._draw_wires(self._graph.attachments, "n", self._bottom, networks)
        for lane in self._heaps:
            self._draw_lane(lane, heaps[lane.node.name], "heap")
        for lane in self._networks:
            self._draw_lane(lane, networks[lane.node.name], "network")
        self._draw_joints(self._graph.memberships, "shared", edges)
        self._draw_joints(self._graph.attachments, "over", networks)
        self._draw_notes(networks)
        self._draw_guests()
        for arc in self._shared:
            self._draw_line(arc, self._top, -1)
        for arc in self._over:
            self._draw_line(arc, self._bottom, 1)
        # Labels last: a line may pass where another's label is.
        for arc in self._shared:
            self._draw_label(arc, self._top, -1)
        for arc in self._over:
            self._draw_label(arc, self._bottom, 1)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self._width:g}" height="{height:g}" '
            f'viewBox="0 0 {self._width:g} {height:g}" role="img">\n'
            f"<title>lab {escape(self._graph.lab)}</title>\n<style>\n{_STYLE}</style>\n"
            '<rect class="paper" width="100%" height="100%"/>\n' + "\n".join(self._parts) + "\n</svg>\n"
        )

    def _draw_legend(self) -> None:
        """What the arcs mean, if there are any, or why there are none."""
        right, y = float(self._width - _MARGIN), _MARGIN + 10
        if not self._paths:
            state = "not up" if self._graph.paths is None else "no open connections"
            self._text(right, y, state, "note", anchor="end")
            return
        for kind, words in (("network", "network"), ("shared", "memory")):
            self._text(right, y, words, "note", anchor="end")
            right -= _text_width(words) + 12
            self._parts.append(f'<path class="path {_CLASS[kind]}" d="M{right - 30:g} {y - 4:g}h30"/>')
            right -= 46

    def _heap_y(self, row: int) -> float:
        return self._top - _ROOM - _levels(self._shared) * _ARC - _LANE - row * _LANE_STEP

    def _wires_of(self, links: Sequence[Link]) -> list[tuple[Link, float]]:
        """Each link with where it leaves its guest: those of one guest side by side."""
        count = dict.fromkeys(self._left, 0)
        for link in links:
            count[link.guest] += 1
        used = dict.fromkeys(self._left, 0)
        wires = []
        for link in links:
            step = (_GUEST[0] - 24) / count[link.guest]
            wires.append((link, self._left[link.guest] + 12 + used[link.guest] * step))
            used[link.guest] += 1
        return wires

    def _draw_wires(self, links: Sequence[Link], kind: str, edge: float, ends: Mapping[str, float]) -> None:
        for link, x in self._wires_of(links):
            self._parts.append(f'<path class="wire {kind}" d="M{x:g} {edge:g}V{ends[link.to]:g}"/>')

    def _draw_joints(self, links: Sequence[Link], kind: str, ends: Mapping[str, float]) -> None:
        """A dot where a wire ends, as it may pass behind other bars before."""
        for link, x in self._wires_of(links):
            self._parts.append(f'<circle class="head {kind}" cx="{x:g}" cy="{ends[link.to]:g}" r="4"/>')

    def _draw_notes(self, networks: Mapping[str, float]) -> None:
        """Addresses beside their wires, where these are far enough from each other."""
        wires = self._wires_of(self._graph.attachments)
        for link, x in wires:
            mine = sum(other.guest == link.guest for other, _ in wires)
            if mine <= 2 and link.note:
                self._text(x + 5, networks[link.to] - 9, link.note, "note", anchor="start")

    def _draw_lane(self, lane: _Lane, y: float, kind: str) -> None:
        width = lane.right - lane.left
        self._parts.append(
            f'<rect class="{kind}" x="{lane.left:g}" y="{y:g}" width="{width:g}" height="{_LANE}" rx="8"/>'
        )
        self._parts.append(
            f'<text x="{lane.left + width / 2:g}" y="{y + _LANE / 2 + 5:g}" text-anchor="middle">'
            f'<tspan class="name">{escape(lane.node.name)}</tspan>'
            f'<tspan class="note" dx="8">{escape(_shorten(lane.node.notes, width))}</tspan></text>'
        )

    def _draw_guests(self) -> None:
        notes = {node.name: node.notes for node in self._graph.guests}
        for name, left in self._left.items():
            kind = "guest" if name in notes else "outside"
            self._parts.append(
                f'<rect class="{kind}" x="{left:g}" y="{self._top:g}" width="{_GUEST[0]}" '
                f'height="{_GUEST[1]}" rx="10"/>'
            )
            middle = left + _GUEST[0] / 2
            lines = [(_fit(name, 18), "name"), *((note, "note") for note in notes.get(name, ()))]
            first = self._top + _GUEST[1] / 2 + 5 - (len(lines) - 1) * 9
            for index, (line, style) in enumerate(lines):
                self._text(middle, first + index * 18, line, style)

    def _draw_line(self, arc: _Arc, edge: float, side: int) -> None:
        kind = arc.path.kind
        y = _level_y(arc, edge, side)
        turn = _CORNER if arc.end > arc.start else -_CORNER
        tip = edge + side * 8
        self._parts.append(
            f'<path class="path {_CLASS[kind]}" d="M{arc.start:g} {edge:g}V{y - side * _CORNER:g}'
            f"Q{arc.start:g} {y:g} {arc.start + turn:g} {y:g}H{arc.end - turn:g}"
            f'Q{arc.end:g} {y:g} {arc.end:g} {y - side * _CORNER:g}V{tip:g}">'
            f"<title>{escape(_describe(arc.path))}</title></path>"
        )
        head = f"M{arc.end - 6:g} {tip + side * 3:g}h12L{arc.end:g} {edge:g}z"
        self._parts.append(f'<path class="head {_CLASS[kind]}" d="{head}"/>')

    def _draw_label(self, arc: _Arc, edge: float, side: int) -> None:
        label = describe_path(arc.path)
        x, y = (arc.start + arc.end) / 2, _level_y(arc, edge, side)
        width = _text_width(label) + 16
        self._parts.append(
            f'<rect class="pill {_CLASS[arc.path.kind]}" x="{x - width / 2:g}" y="{y - 11:g}" '
            f'width="{width:g}" height="22" rx="11"/>'
        )
        self._text(x, y + 4.5, label)

    def _text(self, x: float, y: float, text: str, style: str = "", *, anchor: str = "middle") -> None:
        kind = f' class="{style}"' if style else ""
        self._parts.append(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{kind}>{escape(text)}</text>')


def _rows(lanes: Sequence[_Lane]) -> int:
    return max((lane.row + 1 for lane in lanes), default=0)


def _levels(arcs: Sequence[_Arc]) -> int:
    return max((arc.level + 1 for arc in arcs), default=0)


def _level_y(arc: _Arc, edge: float, side: int) -> float:
    return edge + side * (_ARC * arc.level + _ARC - 4)


def _rank(distance: float) -> float:
    """Orders what leads from a guest: short to the left, long to the left, long to the right, short to it."""
    return 1 / distance if distance else 0.0


def _reach(start: float, end: float) -> tuple[float, float]:
    """What an arc occupies of its level: its line, and the room of its label if that is wider."""
    middle, half = (start + end) / 2, max(abs(end - start) / 2, 60.0)
    return middle - half, middle + half


def _touches(arc: _Arc, left: float, right: float) -> bool:
    others = _reach(arc.start, arc.end)
    return others[0] < right + 12 and left < others[1] + 12


def _text_width(text: str) -> float:
    """About how wide a text is at 13 pixels. Nothing here knows the reader's fonts."""
    return 7.2 * len(text)


def _fit(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _shorten(notes: Sequence[str], width: float) -> str:
    """As many of the notes as fit into a bar of this width."""
    text = ""
    for note in notes:
        longer = f"{text}  {note}" if text else note
        if _text_width(longer) > width - 80:
            break
        text = longer
    return text


def _describe(path: Path) -> str:
    what = "memory" if path.kind == "shared" else "the network"
    count = "1 connection" if path.connections == 1 else f"{path.connections} connections"
    return f"{path.client} -> {path.server}: {path.bytes} bytes through {what} in {count}"
