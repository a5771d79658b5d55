from __future__ import annotations

import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from lab import cli, control, graph, graph_mermaid, graph_svg
from lab.graph import Path
from lab.topology_file import parse_topology

TEXT = """
name: drawn
networks: {lan: {subnet: 10.77.0.0/24}, storage: {subnet: 10.78.0.0/24}}
heaps: {shared: {members: [client, db-server]}, other: {members: [client, third]}}
guests:
  client: {networks: [lan]}
  db-server: {networks: [lan, storage], memory: 1GiB, vcpus: 2}
  third: {networks: [lan]}
"""
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def topology():
    return parse_topology(TEXT, "t.yaml")


def row(client, server, path, shared, network, *, ended=None):
    return {
        "client_guest": client, "server_guest": server, "path": path, "ended": ended,
        "to_server_shared": shared, "to_client_shared": 1 if shared else 0,
        "to_server_network": network, "to_client_network": 0,
    }  # fmt: skip


def test_what_the_topology_says_is_drawn_when_the_lab_is_down(topology):
    drawn = graph.draw(topology)
    assert drawn.paths is None
    assert [node.name for node in drawn.guests] == ["client", "db-server", "third"]
    assert drawn.guests[1].notes == ("1 GiB, 2 vCPU",)
    assert {(link.guest, link.to, link.note) for link in drawn.attachments} >= {
        ("db-server", "lan", "10.77.0.12"),
        ("db-server", "storage", "10.78.0.11"),
    }
    assert ("third", "other") in {(link.guest, link.to) for link in drawn.memberships}


def test_rows_are_summed_up_by_pair_and_way(topology, monkeypatch):
    rows = [
        row("client", "db-server", "shared", 100, 7),
        row("client", "db-server", "shared", 50, 0),
        row("client", "db-server", "network", 0, 9),
        row("client", "db-server", "shared", 5000, 0, ended=3.0),
        row("", "third", "network", 0, 0),
    ]
    monkeypatch.setattr(graph.sockets, "collect", lambda lab: rows)
    assert graph.draw(topology).paths == (
        Path("client", "db-server", "network", 1, 9),
        Path("client", "db-server", "shared", 2, 152),
        Path("outside", "third", "network", 1, 0),
    )
    assert graph.draw(topology, ended=True).paths[1] == Path("client", "db-server", "shared", 3, 5153)


def test_bytes_of_connections_that_left_the_network_are_no_path(topology):
    assert graph.find_paths([row("a", "b", "shared", 10, 3)]) == (Path("a", "b", "shared", 1, 11),)


@pytest.fixture
def drawn(topology):
    paths = (
        Path("client", "db-server", "shared", 3, 5 << 30),
        Path("third", "client", "network", 1, 1536),
        Path("outside", "third", "network", 1, 10),
        Path("client", "client", "shared", 1, 0),
    )
    return replace(graph.draw(topology), paths=paths)


def test_svg_is_well_formed_and_has_every_name_and_path(drawn):
    root = ElementTree.fromstring(graph_svg.render(drawn))
    assert root.tag == f"{SVG}svg"
    texts = ["".join(each.itertext()) for each in root.iter(f"{SVG}text")]
    for name in (
        "lab drawn",
        "client",
        "db-server",
        "third",
        "outside",
        "5 GiB, 3 conn.",
        "1.5 KiB",
        "10.77.0.11",
    ):
        assert name in texts
    assert any(text.startswith("shared") and "64 MiB" in text for text in texts)
    titles = [each.text for each in root.iter(f"{SVG}title")]
    assert "client -> db-server: 5368709120 bytes through memory in 3 connections" in titles


def test_nothing_is_drawn_outside_of_the_picture_and_no_labels_overlap(drawn):
    root = ElementTree.fromstring(graph_svg.render(drawn))
    width, height = float(root.get("width")), float(root.get("height"))
    boxes = [
        tuple(float(each.get(key)) for key in ("x", "y", "width", "height"))
        for each in root.iter(f"{SVG}rect")
        if each.get("class", "").startswith(("pill", "guest", "outside", "heap", "network"))
    ]
    assert len(boxes) == 4 + 4 + 2 + 2
    for x, y, w, h in boxes:
        assert x >= 0
        assert y >= 0
        assert x + w <= width
        assert y + h <= height
    for index, (x, y, w, h) in enumerate(boxes):
        for x2, y2, w2, h2 in boxes[:index]:
            assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y


def test_lanes_that_overlap_are_in_different_rows(drawn):
    picture = graph_svg._Picture(drawn)
    assert [lane.row for lane in picture._heaps] == [0, 1]
    assert [lane.row for lane in picture._networks] == [0, 1]


def test_names_are_escaped(topology):
    nasty = replace(graph.draw(topology), lab="<script>&")
    ElementTree.fromstring(graph_svg.render(nasty))


def test_svg_without_paths_says_why(topology):
    assert ">not up<" in graph_svg.render(graph.draw(topology))
    assert ">no open connections<" in graph_svg.render(replace(graph.draw(topology), paths=()))


def test_mermaid(drawn):
    text = graph_mermaid.render(drawn)
    assert text.startswith("flowchart TB\n")
    assert 'guest_db_server["<b>db-server</b><br/>1 GiB, 2 vCPU"]:::guest' in text
    assert 'guest_client ---|"10.77.0.11"| network_lan' in text
    assert 'guest_client ==>|"shared: 5 GiB, 3 conn."| guest_db_server' in text
    assert 'outside -.->|"network: 10 B"| guest_third' in text
    ids = set(re.findall(r"\b(?:guest|heap|network)_\w+", text))
    declared = set(re.findall(r"^  (\w+)[\[{]", text, re.MULTILINE))
    assert ids <= declared


def test_format_bytes():
    sizes = [0, 512, 1023, 1024, 1536, 64 << 20, 1000 << 20, 5 << 40, 1 << 60]
    assert [graph.format_bytes(size) for size in sizes] == [
        "0 B", "512 B", "1023 B", "1 KiB", "1.5 KiB", "64 MiB", "1000 MiB", "5 TiB", "1048576 TiB",
    ]  # fmt: skip


def test_the_verb(tmp_path, capsys, monkeypatch):
    def refuse(*_args, **_options):
        raise control.ControlError("nobody is there")

    monkeypatch.setattr(control, "ask", refuse)
    file = tmp_path / "t.yaml"
    file.write_text(TEXT)
    assert cli.run(["graph", str(file)]) == 0
    assert capsys.readouterr().out.startswith("flowchart TB")
    picture = tmp_path / "lab.svg"
    assert cli.run(["graph", "-o", str(picture), str(file)]) == 0
    assert picture.read_text().startswith("<svg")
    assert cli.run(["graph", "--format", "svg", str(file)]) == 0
    assert capsys.readouterr().out == picture.read_text()
    assert cli.run(["graph", "--json", str(file)]) == 0
    assert json.loads(capsys.readouterr().out)["paths"] is None
    assert cli.run(["graph", "--json", "-o", str(picture), str(file)]) == 2
    assert cli.run(["graph", "-o", str(tmp_path / "no" / "x.svg"), str(file)]) == 2
