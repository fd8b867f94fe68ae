"""Sheets: tables of images with headings and captions."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont


def side_by_side(
    columns: Sequence[str], rows: Sequence[str], images: Sequence[Sequence[Image.Image]], *, cell: int = 192
) -> Image.Image:
    """Return a table of images with a heading above each column and a caption above each row.

    Args:
        columns: Heading of each column; long headings are broken into lines.
        rows: Caption of each row.
        images: Images by row, then column.
        cell: Width of an image in pixels; smaller images are enlarged without smoothing.
    """
    gap, line_height, caption = 8, 18, 24
    headings = [_lines(heading, cell, 15) for heading in columns]
    head = 16 + line_height * max(map(len, headings), default=1)
    width = gap + len(columns) * (cell + gap)
    height = head + len(rows) * (caption + cell + gap)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, lines in enumerate(headings):
        for down, text in enumerate(lines):
            _write_fitting(draw, (gap + column * (cell + gap), 9 + down * line_height), text, cell, 15)
    for down, (text, line) in enumerate(zip(rows, images, strict=True)):
        top = head + down * (caption + cell + gap)
        _write_fitting(draw, (gap, top + 4), text, width - 2 * gap, 13, "#555555")
        for column, image in enumerate(line):
            tall = max(1, round(cell * image.height / image.width))
            method = Image.Resampling.NEAREST if image.width < cell else Image.Resampling.LANCZOS
            shown = image.convert("RGB").resize((cell, tall), method).crop((0, 0, cell, cell))
            sheet.paste(shown, (gap + column * (cell + gap), top + caption))
    return sheet


def _lines(text: str, width: int, size: int) -> list[str]:
    """Return a text broken between words into lines of at most a width in pixels, unless a word is longer."""
    font = ImageFont.load_default(size)
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines or [""]


def _write_fitting(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, width: int, size: int, colour: str = "black"
) -> None:
    """Draw a line of text, truncated with an ellipsis to a width in pixels."""
    font = ImageFont.load_default(size)
    shown = text
    while shown and draw.textlength(shown + ("…" if shown != text else ""), font=font) > width:
        shown = shown[:-1]
    draw.text(place, shown + ("…" if shown != text else ""), fill=colour, font=font)
