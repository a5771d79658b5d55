"""A lab's graph as a Mermaid flowchart, which GitHub, GitLab and many editors draw."""

from __future__ import annotations

from lab.graph import OUTSIDE, Graph, Node, describe_path


def render(graph: Graph) -> str:
    """The chart's text: guests between the heaps that they share and the networks that they are on. Thick
    arrows are paths through memory, dotted ones over the network.
    """
    lines = ["flowchart TB"]
    lines += [f'  heap_{_id(node)}[("{_label(node)}")]:::heap' for node in graph.heaps]
    lines += [f'  guest_{_id(node)}["{_label(node)}"]:::guest' for node in graph.guests]
    lines += [f'  network_{_id(node)}{{{{"{_label(node)}"}}}}:::network' for node in graph.networks]
    for link in graph.memberships:
        lines.append(f"  heap_{_word(link.to)} === guest_{_word(link.guest)}")
    for link in graph.attachments:
        lines.append(f'  guest_{_word(link.guest)} ---|"{link.note}"| network_{_word(link.to)}')
    for path in graph.paths or ():
        arrow = "==>" if path.kind == "shared" else "-.->"
        label = f"{path.kind}: {describe_path(path)}"
        lines.append(f'  {_end(path.client)} {arrow}|"{label}"| {_end(path.server)}')
    if any(OUTSIDE in (path.client, path.server) for path in graph.paths or ()):
        lines.append(f"  {OUTSIDE}([{OUTSIDE}])")
    lines += [
        "  classDef guest fill:#f6f8fa,stroke:#57606a,color:#1f2328",
        "  classDef heap fill:#dafbe1,stroke:#1a7f37,color:#1f2328",
        "  classDef network fill:#ddf4ff,stroke:#0969da,color:#1f2328",
    ]
    return "\n".join(lines) + "\n"


def _label(node: Node) -> str:
    return "<br/>".join([f"<b>{node.name}</b>", *node.notes])


def _id(node: Node) -> str:
    return _word(node.name)


def _word(name: str) -> str:
    """Names have hyphens, of which Mermaid could make arrows; underscores they do not have."""
    return name.replace("-", "_")


def _end(guest: str) -> str:
    return OUTSIDE if guest == OUTSIDE else f"guest_{_word(guest)}"
