"""Drawing of all charts with matplotlib: every name is plain text, in fonts that have its characters.

Names of classes and variants come from users' files. A dollar sign in them is no formula, and a character that the
default font lacks is drawn with another installed font. A name that no installed font can draw is replaced by its
number, and a line below the chart says so.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from yolov7.errors import one_line

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56a0d3")  # distinguishable with colour blindness
_FONT = "DejaVu Sans"  # comes with matplotlib
_WITHOUT_TEXT = (
    "Last Resort",
    "cm",
    "STIXSize",
    "STIXNonUnicode",
)  # fonts of other shapes than the characters
_LONGEST_NAME = 30
_MOST_EXPLAINED = 12  # names in the line below a chart


@dataclass(frozen=True)
class DrawableNames:
    """Names as a chart shows them.

    Attributes:
        texts: The text of each name: printable, on one line, shortened, or `class 3` where no font has its characters.
        fonts: Font families that together have all characters of the texts, the default one first.
        note: Which names are replaced by their numbers; empty if none is.
    """

    texts: tuple[str, ...]
    fonts: tuple[str, ...]
    note: str


def drawable_names(names: Sequence[str]) -> DrawableNames:
    """Return names as a chart can show them.

    Args:
        names: Class names, in the order of their numbers.

    Returns:
        Their texts, and the fonts to draw them with.
    """
    texts = [one_line(name, limit=_LONGEST_NAME) for name in names]
    fonts, missing = _fonts_for(frozenset("".join(texts)))
    replaced = {i: name for i, name in enumerate(texts) if missing.intersection(name)}
    shown = [f"class {i} = {ascii(name)[1:-1]}" for i, name in list(replaced.items())[:_MOST_EXPLAINED]]
    if len(replaced) > len(shown):
        shown.append(f"and {len(replaced) - len(shown)} more")
    note = f"No installed font has the characters of some names: {', '.join(shown)}." if replaced else ""
    return DrawableNames(tuple(f"class {i}" if i in replaced else text for i, text in enumerate(texts)), fonts, note)


@contextmanager
def drawing(fonts: Sequence[str] = (_FONT,)) -> Iterator[None]:
    """Set matplotlib up while charts are drawn and saved: names are plain text, and no warning reaches the user.

    Args:
        fonts: Font families, in order of preference.
    """
    settings: dict[str, Any] = {
        "font.family": list(fonts),
        "text.parse_math": False,
        "text.usetex": False,
        "svg.fonttype": "none",  # text stays text, which the browser draws with its own fonts
        "svg.hashsalt": "yolov7",  # the same chart has the same bytes
    }
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def add_note(figure: Figure, note: str) -> None:
    """Write a note below a chart.

    Args:
        figure: The chart, with the layout "constrained".
        note: The text; nothing is written if it is empty.
    """
    if note:
        figure.supxlabel(textwrap.fill(note, width=int(16 * figure.get_figwidth())), fontsize=7)


def save_png(figure: Figure, path: Path) -> None:
    """Write a chart as a PNG file.

    Args:
        figure: The chart.
        path: The file, whose folder must exist.
    """
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110)


def svg_text(figure: Figure, *, title: str) -> str:
    """Return a chart as an SVG element for an HTML page.

    Args:
        figure: The chart.
        title: A description for readers who cannot see it, in plain text without markup.

    Returns:
        The element, as wide as its container, with a transparent background.
    """
    FigureCanvasSVG(figure)
    text = io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(text, format="svg", transparent=True, metadata=metadata)
    drawn = text.getvalue()
    opening, _, content = drawn[drawn.index("<svg") :].partition(">")
    view_box = opening.partition('viewBox="')[2].partition('"')[0]
    return f'<svg viewBox="{view_box}" role="img" aria-label="{title}">{content.strip()}'


@cache
def _fonts_for(characters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return font families that together have the characters, and the characters that no installed font has."""
    fonts = [_FONT]
    missing = characters - _characters_of(font_manager.findfont(_FONT))
    if missing:
        _find_new_fonts()
        for entry in sorted(font_manager.fontManager.ttflist, key=lambda entry: _preference(entry, characters)):
            if found := missing & _characters_of(entry.fname):
                fonts.append(entry.name)
                missing -= found
            if not missing:
                break
    return tuple(fonts), missing


def _find_new_fonts() -> None:
    """Add fonts that were installed since matplotlib listed the fonts of this machine."""
    known = {entry.fname for entry in font_manager.fontManager.ttflist}
    for path in set(font_manager.findSystemFonts()) - known:
        try:
            font_manager.fontManager.addfont(path)
        except (OSError, RuntimeError, NotImplementedError):  # damaged, or a kind that matplotlib cannot draw
            continue


def _preference(entry: Any, characters: frozenset[str]) -> tuple[bool | str, ...]:
    """Order fonts: sans-serif, upright and regular ones first, of CJK fonts those of the language of the names."""
    language = "SC"
    if any("\u3040" <= character <= "\u30ff" for character in characters):
        language = "JP"
    elif any("\uac00" <= character <= "\ud7a3" for character in characters):
        language = "KR"
    unsuited = "Serif" in entry.name or "Mono" in entry.name
    return unsuited, entry.style != "normal", entry.weight != 400, not entry.name.endswith(language), entry.name


@cache
def _characters_of(path: str) -> frozenset[str]:
    try:
        font = font_manager.get_font(path)
    except (OSError, RuntimeError):
        return frozenset()
    if font.family_name.startswith(_WITHOUT_TEXT):
        return frozenset()
    return frozenset(map(chr, font.get_charmap()))
