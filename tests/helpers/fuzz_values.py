"""What a hostile user would write: values for any key, and whole YAML files."""

from pathlib import Path

MARKER = "<marker>"  # stands for a file that must never come to be
_APPLY = f'!!python/object/apply:os.system ["touch {MARKER}"]'

# As YAML, in which both the command line and files are read.
VALUES = {
    "text": "abc",
    "number": "7",
    "one": "1",
    "fraction": "0.5",
    "negative": "-1",
    "zero": "0",
    "large": str(10**9),
    "huge": str(10**30),
    "largest float": "1.0e+308",
    "not a number": ".nan",
    "infinite": ".inf",
    "minus infinite": "-.inf",
    "list": "[1, 2]",
    "list of texts": "[a, b]",
    "empty list": "[]",
    "nested": '{"a": {"b": 1}}',
    "empty mapping": "{}",
    "null": "null",
    "empty": "",
    "quoted empty": '""',
    "true": "true",
    "false": "false",
    "long": "x" * 10_000,
    "newline": "a\nb",
    "other alphabet": "Ünï中☃",
    "path": "../../etc/passwd",
    "folder": "..",
    "tag": _APPLY,
    "variable": "${env:HOME}",
    "braces": "{{",
    "date": "2020-01-01",
    "function": "os.system",
    "process": "subprocess.Popen",
    "evaluation": "builtins.eval",
    "other class": "torch.nn.Linear",
    "function with arguments": f'{{"class_path": "os.system", "init_args": {{"command": "touch {MARKER}"}}}}',
    "process with arguments": f'{{"class_path": "subprocess.Popen", "init_args": {{"args": ["touch", "{MARKER}"]}}}}',
    "folder with arguments": f'{{"class_path": "os.mkdir", "init_args": {{"path": "{MARKER}"}}}}',
}
# Where a file reads them otherwise than the command line.
IN_FILES = ("text", "huge", "nested", "list", "null", "quoted empty", "tag", "date", "function with arguments")
# For what another command has tried with all of them.
FEW = ("text", "fraction", "negative", "huge", "nested", "null", "path", "function with arguments")


def in_a_file(key: str, value: str) -> str:
    """YAML that sets a key such as `model.num_layers`."""
    *sections, name = key.split(".")
    opened = "".join(f"{'  ' * depth}{section}:\n" for depth, section in enumerate(sections))
    return f"{opened}{'  ' * len(sections)}{name}: {value}\n"


FILES: dict[str, bytes] = {
    "empty": b"",
    "comment": b"# nothing\n",
    "list": b"- 1\n- 2\n",
    "number": b"7\n",
    "text": b"hello\n",
    "null": b"null\n",
    "two documents": b"model:\n  num_layers: 1\n---\nmodel:\n  num_layers: 2\n",
    "key twice": b"model:\n  num_layers: 1\n  num_layers: 2\n",
    "section twice": b"model:\n  num_layers: 1\nmodel:\n  num_heads: 2\n",
    "unknown key": b"nonsense: 1\n",
    "unknown key in trainer": b"trainer:\n  nonsense: 1\n",
    "unknown key in model": b"model:\n  nonsense: 1\n",
    "unknown key in an attention": b"model:\n  attention:\n    init_args:\n      nonsense: 1\n",
    "unknown key beside class_path": b"model:\n  attention:\n    nonsense: 1\n",
    "unknown key in data": b"data:\n  init_args:\n    nonsense: 1\n",
    "unknown key in protocol": b"data:\n  init_args:\n    protocol:\n      nonsense: 1\n",
    "unknown key in a callback": b"last_checkpoint:\n  nonsense: 1\n",
    "number as a key": b"1: 2\n",
    "null as a key": b"null: 2\n",
    "list as a key": b"? [1, 2]\n: 3\n",
    "mapping as a key": b"? {a: 1}\n: 3\n",
    "number as a key in model": b"model:\n  1: 2\n",
    "list as a key in model": b"model:\n  ? [1, 2]\n  : 3\n",
    "empty key": b"? ''\n: 3\n",
    "dotted key": b"model.num_layers: 1\n",
    "tag": f"model: {_APPLY}\n".encode(),
    "tag of an object": b"!!python/object:os.system {}\n",
    "tag of a name": b"seed_everything: !!python/name:os.system\n",
    "tag of a module": b"seed_everything: !!python/module:os\n",
    "new object": f'!!python/object/new:subprocess.Popen [["touch", "{MARKER}"]]\n'.encode(),
    "unknown tag": b"seed_everything: !nonsense 1\n",
    "include": b"seed_everything: !include /etc/passwd\n",
    "merge": b"base: &base {num_layers: 1}\nmodel:\n  <<: *base\n",
    "merge of a number": b"model:\n  <<: 3\n",
    "unknown alias": b"model: *nowhere\n",
    "junk": bytes(range(256)) * 64,
    "nul": b"\0" * 100,
    "high bytes": b"model: \xff\xfe\xfd\n",
    "control characters": b"model: \x07\x1b[31m\n",
    "tab": b"model:\n\tnum_layers: 1\n",
    "utf-16": "model:\n  num_layers: 1\n".encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbfmodel:\n  num_layers: 1\n",
    "carriage returns": b"model:\r\n  num_layers: 1\r\n",
    "megabytes of text": b"x" * 10_000_000,
    "megabytes of junk": bytes(range(1, 251)) * 40_000,
    "unclosed": b"model: {num_layers: 1\n",
    "unclosed quote": b'model: "abc\n',
    "braces": b"model: {{ layers }}\n",
    "sexagesimal": b"seed_everything: 1:30\n",
    "octal": b"seed_everything: 0o17\n",
    "section as text": b"trainer: hello\n",
    "section as list": b"trainer: [1, 2]\n",
    "section as null": b"trainer: null\n",
    "data as null": b"data: null\n",
    "model as null": b"model: null\n",
    "attention as null": b"model:\n  attention: null\n",
    "class path missing": b"data:\n  init_args: {}\n",
    "config in a config": b"config: other.yaml\n",
    "subcommand in a config": b"fit:\n  model:\n    num_layers: 1\n",
}


def write_places(folder: Path) -> dict[str, str]:
    """Names of configuration files that cannot be read, by kind."""
    (folder / "folder").mkdir()
    (folder / "closed.yaml").touch(mode=0o000)
    (folder / "itself.yaml").symlink_to("itself.yaml")
    return {
        "missing file": f"{folder}/missing.yaml",
        "folder": f"{folder}/folder",
        "no permission": f"{folder}/closed.yaml",
        "link to itself": f"{folder}/itself.yaml",
        "below a file": f"{folder}/closed.yaml/more.yaml",
        "long name": f"{folder}/{'x' * 300}.yaml",
        "empty name": "",
        "device": "/dev/null",
        "address": "http://localhost:1/nothing.yaml",
        "nothing like a file": "{}",
        "text": "model: 1",
    }
