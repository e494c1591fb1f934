"""Commands that must be refused."""

import pytest


def refuse(main, capsys, arguments: list[str], code: int, *words: str) -> str:
    """Run a command that must fail with this exit status and name all these words on stderr."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    said = capsys.readouterr().err
    assert stopped.value.code == code, said
    for word in words:
        assert word in said, f"{word!r} not in: {said}"
    return said
