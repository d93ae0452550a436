"""Ask one question.

python examples/generate.py FOLDER ["a prompt"]
"""

import sys

import diffusiongemma as dg

folder, *words = sys.argv[1:] or sys.exit(__doc__)
gemma = dg.load(folder)
print(gemma.device.reason)

reply = gemma.generate(" ".join(words) or "Why is the sky blue?", seed=7, max_new_tokens=64)
print(reply.text)
print(f"{reply.stats.tokens_per_forward:.1f} tokens per forward, because: {reply.finish_reason}")
