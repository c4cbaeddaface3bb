"""Tables of answers: `given ⇒ truth` where they are the same, `given ⇏ truth` where they are not."""

from collections.abc import Callable


def misjudged(table: str, judge: Callable[[str, str], object]) -> list[str]:
    """The lines of a table that `judge` (of given, truth) does not bear out. `⏎` is the end of a line."""
    lines = table.strip().splitlines()
    assert lines and all((" ⇒ " in line) != (" ⇏ " in line) for line in lines)
    pairs = [line.replace(" ⇏ ", " ⇒ ").split(" ⇒ ") for line in lines]
    verdicts = [bool(judge(given.replace("⏎", "\n"), truth)) for given, truth in pairs]
    return [line for line, verdict in zip(lines, verdicts, strict=True) if verdict != (" ⇒ " in line)]
