"""A command as users meet it: what it printed, and how it ended."""


class Result:
    """What a command left: exit code, standard output and error."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


def refused(result: Result, *words: str) -> None:
    """One line that holds `words`, exit code 2, nothing on standard output."""
    assert result.code == 2, result.err
    lines = [line for line in result.err.splitlines() if line.startswith("pdlab:")]
    assert len(lines) == 1, result.err
    assert "Traceback" not in result.err
    for word in words:
        assert word in lines[0]
