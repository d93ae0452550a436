"""DiffusionGemma: text by diffusion.

    import diffusiongemma as dg

    gemma = dg.load("google/diffusiongemma-26B-A4B-it")
    print(gemma.generate("Why is the sky blue?", seed=7).text)

Importing this does nothing: no torch, no network, no device. Names are fetched when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusiongemma.core.errors import DiffusionGemmaError as DiffusionGemmaError
    from diffusiongemma.core.patches import Patches as Patches
    from diffusiongemma.diffusion.accept import EntropyBound as EntropyBound
    from diffusiongemma.diffusion.config import SamplerConfig as SamplerConfig
    from diffusiongemma.engine.conversation import Conversation as Conversation
    from diffusiongemma.engine.events import Committed as Committed
    from diffusiongemma.engine.events import Finished as Finished
    from diffusiongemma.engine.events import Refined as Refined
    from diffusiongemma.engine.gemma import Gemma as Gemma
    from diffusiongemma.engine.open import load as load
    from diffusiongemma.engine.reply import Reply as Reply
    from diffusiongemma.engine.reply import Stats as Stats
    from diffusiongemma.kernels.readout import Ask as Ask
    from diffusiongemma.kernels.readout import Readout as Readout

__version__ = "0.1.0"

_HOME = {
    "Ask": "kernels.readout",
    "Committed": "engine.events",
    "Conversation": "engine.conversation",
    "DiffusionGemmaError": "core.errors",
    "EntropyBound": "diffusion.accept",
    "Finished": "engine.events",
    "Gemma": "engine.gemma",
    "Patches": "core.patches",
    "Readout": "kernels.readout",
    "Refined": "engine.events",
    "Reply": "engine.reply",
    "SamplerConfig": "diffusion.config",
    "Stats": "engine.reply",
    "load": "engine.open",
}
__all__ = [
    "Ask",
    "Committed",
    "Conversation",
    "DiffusionGemmaError",
    "EntropyBound",
    "Finished",
    "Gemma",
    "Patches",
    "Readout",
    "Refined",
    "Reply",
    "SamplerConfig",
    "Stats",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'diffusiongemma' has no attribute '{name}'")
    return getattr(importlib.import_module(f"diffusiongemma.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*_HOME, "__version__"])
