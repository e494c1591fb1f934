"""Read untrusted YAML: plain values, each key once."""

from typing import Any

import jsonargparse
import yaml

_read = jsonargparse.get_loader("yaml")


def load_dumped(text: str) -> Any:
    """The value of a configuration that this program dumped.

    PyYAML writes some text without quotes, such as `1e3`, that jsonargparse would read as a number.
    """
    return yaml.load(text, Loader=yaml.CSafeLoader)


def load_yaml(text: str) -> Any:
    """The value of a YAML text, as jsonargparse reads it.

    Raises:
        yaml.YAMLError: with line and column; also for tags of Python's objects and for a key that is there twice.
    """
    nodes, seen = [yaml.compose(text, Loader=yaml.CSafeLoader)], set[int]()
    for node in nodes:  # which grows; an alias is looked at once
        if id(node) not in seen and isinstance(node, yaml.CollectionNode):
            nodes += _parts(node)
            seen.add(id(node))
    return _read(text)


def _parts(node: yaml.CollectionNode) -> list[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        return node.value
    names = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value in names:
            raise yaml.MarkedYAMLError(None, None, f"the key {key.value!r} is there twice", key.start_mark)
        names.add(str(key.value))
    return [value for _, value in node.value]


jsonargparse.set_loader("yaml", load_yaml, exceptions=(yaml.YAMLError,))
