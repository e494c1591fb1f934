"""YAML that people bring: plain values, few enough to hold, each key once."""

from typing import Any

import jsonargparse
import yaml

_LARGEST = 10_000  # values; the largest of our own files has a hundred
_KINDS = ("map", "seq", "str", "int", "float", "bool", "null", "merge", "timestamp", "value")
_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in _KINDS}
_read = jsonargparse.get_loader("yaml")


def load_yaml(text: str) -> Any:
    """The value of a YAML text, as jsonargparse reads it.

    Raises:
        yaml.YAMLError: with line and column; also for tags of Python's objects and of bytes, a key that is there twice,
            a value that holds itself, more than 10,000 values once aliases are written out, and NULs.
    """
    try:
        root = yaml.compose(text, Loader=yaml.CSafeLoader)
        if root is not None:
            _count(root, {}, set())
        return _read(text)
    except RecursionError as error:
        raise yaml.YAMLError("nests too deeply") from error


def _count(node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
    """Values in a node, each alias counted as what it stands for, without writing them out."""
    if id(node) in above:
        raise _refuse(node, "holds itself")
    if id(node) in known:
        return known[id(node)]
    if node.tag not in _TAGS:
        raise _refuse(node, f"has the tag {node.tag!r}, only plain values are read")
    above.add(id(node))
    count = 1 + sum(_count(part, known, above) for part in _parts(node))
    above.discard(id(node))
    if count > _LARGEST:
        raise _refuse(node, f"holds more than {_LARGEST:,} values")
    known[id(node)] = count
    return count


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.ScalarNode):
        if "\0" in node.value:
            raise _refuse(node, "holds a NUL")
        return []
    if isinstance(node, yaml.SequenceNode):
        return node.value
    names = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _refuse(key, "is no name of a key")
        if key.value in names:
            raise _refuse(key, f"the key {key.value!r} is there twice")
        names.add(key.value)
    return [part for pair in node.value for part in pair]


def _refuse(node: yaml.Node, why: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, why, node.start_mark)


jsonargparse.set_loader("yaml", load_yaml, exceptions=(yaml.YAMLError,))
