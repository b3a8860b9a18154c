"""How numbers stand in the cells of the documents' tables."""


def spread(ratio: dict) -> str:
    return f"{ratio['value']:.2f}x [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def escaped(text: str) -> str:
    """`text` as it may stand in a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def points(drop: dict) -> str:
    return f"{100 * drop['value']:.2f} [{100 * drop['low']:.2f}, {100 * drop['high']:.2f}]"
