"""Pictures of a report's page as Chromium shows it: light, dark and narrow.

    python -m experiments.screenshots runs/s/report/index.html

They are written beside the page, or to `--output`.
"""

import pathlib
import shutil
import subprocess
import tempfile

from absl import flags

from experiments import command
from experiments.errors import UserError

_FLAGS = flags.FlagValues()
_OUTPUT = command.define_path("output", "folder to write", _FLAGS)
# Name -> window, and Blink's number of the preferred colour scheme.
_VIEWS = {
    "light": ("1400,2600", 1),
    "dark": ("1400,2600", 0),
    "narrow": ("500,3600", 1),
}


def main(positional: list[str], overrides: list[str]) -> int:
    """Writes the pictures."""
    command.no_arguments((), overrides)
    browser = shutil.which("chromium")
    if not browser:
        raise UserError("needs chromium (make system-deps)")
    if len(positional) != 1 or not pathlib.Path(positional[0]).is_file():
        raise UserError(f"name one index.html, given {positional}")
    page = pathlib.Path(positional[0]).absolute()
    output = pathlib.Path(_OUTPUT.value or page.parent).absolute()
    output.mkdir(parents=True, exist_ok=True)
    for name, (window, scheme) in _VIEWS.items():
        picture = output / f"page_{name}.png"
        with tempfile.TemporaryDirectory() as profile:
            subprocess.run(
                [
                    *(browser, "--headless", "--no-sandbox", "--disable-gpu"),
                    *("--no-first-run", "--disable-background-networking"),
                    *("--hide-scrollbars", f"--user-data-dir={profile}"),
                    f"--blink-settings=preferredColorScheme={scheme}",
                    *(f"--window-size={window}", f"--screenshot={picture}"),
                    page.as_uri(),
                ],
                check=True,
                capture_output=True,
                timeout=120,
            )
        print(picture)
    return 0


if __name__ == "__main__":
    command.run(main, _FLAGS)
