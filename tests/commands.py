"""Commands that must fail well, and what they may not touch."""

from sfumato.cli import main


def fails(capsys, words, *parts):
    """The words give exit code 2 and one line on standard error that holds the parts."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("sfumato: "), err
    assert err.count("\n") == 1, err
    for part in parts:
        assert part in err
    return out


def everything(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
