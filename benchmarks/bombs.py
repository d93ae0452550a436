"""How long a chat template that never ends takes to be refused, by the clock, with usual limits.

    python benchmarks/bombs.py

The bombs are those of tests/dialog/test_bombs.py. Each is rendered once on a Template of its own,
which starts its child process, then a good prompt follows. Printed are the slowest; an idle
machine should need no more than two seconds for any.
"""

import importlib.util
import platform
import sys
import time
from pathlib import Path

from diffusiongemma.core.errors import DiffusionGemmaError
from diffusiongemma.dialog.template import Template

BOMBS = Path(__file__).resolve().parents[1] / "tests" / "dialog" / "test_bombs.py"


def refused(bomb: str, given: dict) -> float:
    """Seconds until the sentence, the start of the child included."""
    start = time.perf_counter()
    try:
        Template(bomb).render(given)
    except DiffusionGemmaError:
        return time.perf_counter() - start
    raise SystemExit(f"not refused: {bomb[:100]}")


def main() -> None:
    """Render all of them and print the slowest."""
    spec = importlib.util.spec_from_file_location("bombs", BOMBS)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    bombs = [*module.LONG, *module.GROWING, *module.ENDLESS, *module.FOLDED]
    found = []
    for number, bomb in enumerate(bombs, 1):
        found.append((refused(bomb, module.GIVEN), bomb))
        assert Template("{{ word }}").render(module.GIVEN) == "fine"
        print(f"{number} of {len(bombs)}", end="\r", file=sys.stderr, flush=True)
    found.sort(reverse=True)
    print(f"{len(bombs)} bombs, Python {platform.python_version()}; seconds of the slowest:")
    for seconds, bomb in found[:5]:
        print(f"  {seconds:5.2f}  {bomb[:80]}")


if __name__ == "__main__":
    main()
