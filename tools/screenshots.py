"""Pictures of the built site: `make docs`, then `python -m tools.screenshots`.

Needs Debian's `chromium`, or another browser of its kind that $CHROMIUM names, and pillow.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "build" / "site"
PICTURES = ROOT / "docs" / "screenshots"
WIDE, NARROW = (1400, 1000), (500, 900)
LIGHT, DARK = 1, 0  # Blink's numbers of the colours that a page is told the reader prefers
SHOTS = {
    "overview": ("README", WIDE, LIGHT),
    "performance": ("docs/performance", WIDE, DARK),
    "notebook": ("examples/rnn_basics", WIDE, DARK),
    "api": ("docs/api", WIDE, LIGHT),
    "overview-narrow": ("README", NARROW, LIGHT),
    "leaky-narrow": ("docs/leaky", NARROW, DARK),
}


def shoot(page: str, size: tuple[int, int], colours: int, picture: Path) -> None:
    browser = os.environ.get("CHROMIUM", "chromium")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder, "shot.png")
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", f"--user-data-dir={folder}/profile",
            "--hide-scrollbars", f"--window-size={size[0]},{size[1]}",
            f"--blink-settings=preferredColorScheme={colours}",
            "--virtual-time-budget=5000",  # ms: MathJax is done by then
            f"--screenshot={shot}", (SITE / f"{page}.html").as_uri(),
        ]  # fmt: skip
        subprocess.run(command, check=True, timeout=120, capture_output=True)
        Image.open(shot).convert("RGB").save(picture, lossless=True, method=6)


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    for name, shot in SHOTS.items():
        shoot(*shot, PICTURES / f"{name}.webp")
        print(f"wrote {PICTURES / name}.webp")
