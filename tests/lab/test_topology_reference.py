from __future__ import annotations

import re

from lab.topology_file import load_topology, parse_topology
from lab.topology_reference import generate, main
from lab.topology_schema import Spec, TopologySpec, part_at, valid_keys


def test_the_committed_reference_is_up_to_date(repository):
    committed = (repository / "docs" / "topology.md").read_text()
    assert committed == generate(), "docs/topology.md is not what the models say; to mend it: make docs"


def test_main_writes_it(tmp_path):
    main([str(tmp_path / "out.md")])
    assert (tmp_path / "out.md").read_text() == generate()


def test_every_key_of_every_part_is_described():
    text = generate()

    def parts(kind: type[Spec]) -> set[type[Spec]]:
        return {kind}.union(*(parts(each) for each in kind.__subclasses__()))

    for part in parts(Spec) - {Spec}:
        for name, field in part.model_fields.items():
            assert field.description, f"{part.__name__}.{name} has no description"
        for key in valid_keys(part):
            assert f"| `{key}` | " in text


def test_part_at_a_path():
    assert part_at(()) is TopologySpec
    assert valid_keys(part_at(("guests", "any", "networks", "lan"))) == ["address", "address6"]
    assert part_at(("guests", "any", "memory")) is None
    assert part_at(("heaps",)) is None
    assert part_at(("nonsense", "x")) is None


def test_yaml_examples_of_the_documents_are_valid(repository):
    for path in [repository / "README.md", *(repository / "docs").glob("*.md")]:
        for example in re.findall(r"```yaml\n(.*?)```", path.read_text(), re.DOTALL):
            parse_topology(example, str(path))
    for path in (repository / "examples").glob("*.yaml"):
        load_topology(path)
