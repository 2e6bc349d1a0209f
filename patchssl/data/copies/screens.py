"""A photograph as it looks in the picture of a screen: on a page in a telephone or in a window."""

import numpy as np
from PIL import Image, ImageDraw

from patchssl.data.copies.drawing import INK, PAPER, Colour, any_colour, font, sentence
from patchssl.data.synth.randomness import choose

_GREY: Colour = (128, 128, 128)
_NIGHT: Colour = (24, 26, 30)
_LIGHT_BAR: Colour = (236, 238, 240)
_LIGHTS: tuple[Colour, ...] = ((237, 106, 94), (244, 190, 79), (97, 196, 84))
_LEAST_PX = 24


def screenshot(
    rng: np.random.Generator, image: Image.Image, strength: float
) -> tuple[Image.Image, dict[str, float | int | str | list[int]]]:
    """Show the image, smaller, on a page of text with a bar above and in a telephone also one below.

    Args:
        rng: where the page, the scale and the place come from.
        image: RGB.
        strength: at 1 the image takes 55 to 95 % of the page's width or height, whichever it fills first; at larger
            strengths less, by the square root.

    Returns:
        An image whose long side has 80 to 120 % of the given one's, and the parameters.
    """
    is_phone = bool(rng.random() < 0.5)
    long_px = round(max(image.size) * rng.uniform(0.8, 1.2))
    size = (round(long_px * 0.5), long_px) if is_phone else (long_px, round(long_px * 0.65))
    bar_px = max(4, round(long_px * (0.06 if is_phone else 0.05)))
    is_dark = bool(rng.random() < 0.4)
    page = _page_of_text(rng, size, bar_px, _NIGHT if is_dark else PAPER)
    draw = ImageDraw.Draw(page)
    room = (size[0], size[1] - (2 if is_phone else 1) * bar_px)
    shown = _fitted(image, room, rng.uniform(0.55, 0.95) / strength**0.5)
    left, top = (round(rng.random() * (most - side)) for most, side in zip(room, shown.size, strict=True))
    page.paste(shown, (left, top + bar_px))
    tone = any_colour(rng) if rng.random() < 0.3 else choose(rng, (_NIGHT, _LIGHT_BAR))
    if is_phone:
        _phone_bars(rng, draw, size, bar_px, tone)
    else:
        _window_bar(rng, draw, size, bar_px, tone)
    screen = "phone" if is_phone else "window"
    return page, {"screen": screen, "width_px": shown.width, "height_px": shown.height, "left_px": left, "top_px": top}


def _fitted(image: Image.Image, room: tuple[int, int], fill: float) -> Image.Image:
    """Scale the image so that it takes a share of the room's width or height, whichever it fills first."""
    scale = min(1.0, fill) * min(room[0] / image.width, room[1] / image.height)
    width, height = (max(_LEAST_PX, round(side * scale)) for side in image.size)
    return image.resize((min(width, room[0]), min(height, room[1])), Image.Resampling.LANCZOS)


def _page_of_text(rng: np.random.Generator, size: tuple[int, int], bar_px: int, paper: Colour) -> Image.Image:
    """Write paragraphs over a whole page, which the image then covers in part."""
    width, height = size
    page = Image.new("RGB", size, paper)
    draw = ImageDraw.Draw(page)
    letters_px = max(6, round(bar_px * 0.45))
    margin, top = letters_px, bar_px + letters_px // 2
    while top < height:
        if rng.random() < 0.8:
            draw.text((margin, top), sentence(rng, 4 + int(rng.random() * 12)), fill=_GREY, font=font(letters_px))
        top += round(1.5 * letters_px)
    draw.rectangle((width - margin, 0, width, height), fill=paper)
    return page


def _phone_bars(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, size: tuple[int, int], bar_px: int, tone: Colour
) -> None:
    """Draw the time and the battery above, buttons below."""
    width, height = size
    ink = _opposite(tone)
    draw.rectangle((0, 0, width, bar_px), fill=tone)
    time = f"{int(rng.random() * 24):02d}:{int(rng.random() * 60):02d}"
    draw.text((bar_px // 2, bar_px * 0.2), time, fill=ink, font=font(max(6, bar_px // 2)))
    right, edge = width - bar_px // 2, max(1, bar_px // 16)
    draw.rectangle((right - bar_px, bar_px * 0.3, right, bar_px * 0.7), outline=ink, width=edge)
    charge = bar_px * rng.uniform(0.1, 1.0)
    draw.rectangle((right - bar_px, bar_px * 0.3, right - bar_px + charge, bar_px * 0.7), fill=ink)
    draw.rectangle((0, height - bar_px, width, height), fill=tone)
    for button in (1, 2, 3):
        middle, radius = width * button / 4, bar_px * 0.22
        box = (middle - radius, height - bar_px / 2 - radius, middle + radius, height - bar_px / 2 + radius)
        choose(rng, (draw.ellipse, draw.rectangle))(box, outline=ink, width=max(1, bar_px // 12))


def _window_bar(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, size: tuple[int, int], bar_px: int, tone: Colour
) -> None:
    """Draw three lights and an address above, a line around."""
    width, height = size
    draw.rectangle((0, 0, width, bar_px), fill=tone)
    for number, light in enumerate(_LIGHTS):
        middle, radius = bar_px * (0.6 + 0.7 * number), bar_px * 0.22
        draw.ellipse((middle - radius, bar_px / 2 - radius, middle + radius, bar_px / 2 + radius), fill=light)
    field = (bar_px * 3, bar_px * 0.18, max(bar_px * 3.5, width - bar_px), bar_px * 0.82)
    draw.rounded_rectangle(field, radius=bar_px * 0.2, fill=_mixed(tone))
    address = sentence(rng, 3).lower().replace(" ", "-")
    draw.text((bar_px * 3.4, bar_px * 0.24), address, fill=_opposite(_mixed(tone)), font=font(max(6, bar_px * 2 // 5)))
    draw.rectangle((0, 0, width - 1, height - 1), outline=_GREY, width=max(1, bar_px // 24))


def _opposite(tone: Colour) -> Colour:
    return INK if sum(tone) > 384 else PAPER


def _mixed(tone: Colour) -> Colour:
    """A little brighter, or darker if it is bright."""
    towards = _opposite(tone)
    red, green, blue = (round(0.85 * a + 0.15 * b) for a, b in zip(tone, towards, strict=True))
    return red, green, blue
