from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest

from lab import cli
from lab.topology_file import parse_topology
from lab.topology_json_schema import generate
from lab.topology_schema import Spec, TopologySpec, valid_keys
from lab.topology_yaml import SyntaxFaultError, parse

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
GOOD = [*sorted((HERE / "good_topologies").glob("*.yaml")), *sorted((REPOSITORY / "examples").glob("*.yaml"))]
BAD = sorted((HERE / "bad_topologies").glob("*.yaml"))

#: What no schema sees: the text is no YAML, or parts contradict each other, or a value needs arithmetic.
UNSEEN = {
    "address_outside", "address_reserved", "address_twice", "alias_of_itself", "control_character",
    "duplicate_key", "heap_members", "heap_power_of_two", "merge_key", "no_guests",
    "no_network_for_guest", "no_such_sections", "not_utf8", "nul_bytes", "overlapping_subnets",
    "policy_contradiction",
    "policy_without_condition", "reserved_names", "subnet_too_small", "syntax_colon", "syntax_indent",
    "syntax_open_bracket", "syntax_open_quote", "syntax_two_colons", "tabs", "two_documents",
    "undefined_alias", "unknown_heap", "unknown_network",
}  # fmt: skip


@pytest.fixture(scope="module")
def validator():
    schema = generate()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.name)
def test_good_topologies_validate(validator, path):
    validator.validate(parse(path.read_bytes()).data)


def test_the_documents_examples_validate(validator):
    for path in [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]:
        for example in re.findall(r"```yaml\n(.*?)```", path.read_text(), re.DOTALL):
            parse_topology(example, str(path))
            validator.validate(parse(example.encode()).data)


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_bad_topologies_do_not_validate_where_a_schema_can_tell(validator, path):
    try:
        document = parse(path.read_bytes())
    except SyntaxFaultError:
        assert path.stem in UNSEEN
        return
    assert validator.is_valid(document.data) == (path.stem in UNSEEN)


def test_most_bad_topologies_do_not_validate():
    assert len(UNSEEN & {path.stem for path in BAD}) < len(BAD) * 0.65


def test_every_key_is_in_the_schema_with_its_description():
    schema = generate()

    def parts(kind):
        return {kind}.union(*(parts(each) for each in kind.__subclasses__()))

    for part in parts(Spec) - {Spec}:
        name = part.__name__.removesuffix("Spec").lower()
        found = schema if part is TopologySpec else schema["$defs"][name]
        found = found.get("anyOf", [found])[0]
        assert list(found["properties"]) == valid_keys(part)
        for key, described in found["properties"].items():
            assert described["description"], f"{name}.{key}"


def test_the_verb_prints_it(capsys):
    assert cli.run(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == generate()
