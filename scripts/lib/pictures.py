"""What the scripts of pictures/ share: a browser, and small PNG files in docs/images."""

from __future__ import annotations

import io
import sys
import time
from typing import TYPE_CHECKING

from lib.paths import HELPERS, ROOT

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

sys.path.insert(0, str(HELPERS))

IMAGES = ROOT / "docs" / "images"
COLOURS = 128  # of a palette: files have a third of the size
SETTLED = 2.0  # seconds in which an enlarged chart is drawn anew
_BELOW = """
const below = (node, name) => [...node.querySelectorAll("*")].flatMap(
    (element) => [...(element.matches(name) ? [element] : []),
                  ...(element.shadowRoot ? below(element.shadowRoot, name) : [])]);
"""
_CHARTS = """
return below(document, "tf-scalar-card").map((card) => [card.tag, below(card.shadowRoot, "path.symbol").length]);
"""  # the charts of TensorBoard's scalars, each with its tag and the number of its curves
_ENLARGED = """
const card = below(document, "tf-scalar-card")[0];
below(card.shadowRoot, "paper-icon-button")[0].click();
return card;
"""
_ROWS = """
const documents = [document, ...[...document.querySelectorAll("iframe")].map((frame) => frame.contentDocument)];
return documents.flatMap((one) => [...below(one, "vaadin-grid")].map((grid) => grid.items?.length ?? grid.size ?? 0));
"""  # the rows of the table of TensorBoard's HPARAMS


def rows_of_trials(driver: Chrome) -> int:
    """Return how many trials the table of TensorBoard's HPARAMS has."""
    found: list[int] = driver.execute_script(_BELOW + _ROWS)  # type: ignore[no-untyped-call]
    return max(found, default=0)


def charts(driver: Chrome) -> dict[str, int]:
    """Return the charts on a page of TensorBoard: tag and number of curves."""
    found: list[tuple[str, int]] = driver.execute_script(_BELOW + _CHARTS)  # type: ignore[no-untyped-call]
    return dict(found)


def chart(driver: Chrome) -> bytes:
    """Return a picture of the first chart, enlarged."""
    card: WebElement = driver.execute_script(_BELOW + _ENLARGED)  # type: ignore[no-untyped-call]
    time.sleep(SETTLED)
    return card.screenshot_as_png


def save(png: bytes, name: str) -> None:
    """Save a picture with a palette."""
    from PIL import Image

    IMAGES.mkdir(exist_ok=True)
    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    picture.save(IMAGES / name, optimize=True)
    print(f"{IMAGES / name}: {picture.width} x {picture.height}, {(IMAGES / name).stat().st_size} bytes")
