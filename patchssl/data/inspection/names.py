"""Names of files and classes as text that a terminal or a picture can show."""


def shown(text: str, most: int | None = None) -> str:
    """A name with everything escaped that does not print, such as newlines, control codes and bytes that are no text.

    Args:
        text: any.
        most: letters; a longer name loses its middle.
    """
    whole = "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)
    if most is None or len(whole) <= most:
        return whole
    tail = most // 2
    return f"{whole[: most - 1 - tail]}…{whole[len(whole) - tail :]}"


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode()
