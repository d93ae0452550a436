"""Ask one question.

python examples/generate.py ["a prompt" [FOLDER]]
"""

import sys

import diffusiongemma as dg

prompt, *folder = sys.argv[1:] or ["Sort: 52 7 30 9 11"]
gemma = dg.load(*folder)
print(gemma.device.reason)

reply = gemma.generate(prompt, seed=7, max_new_tokens=64)
print(reply.text)
print(f"{reply.stats.tokens_per_forward:.1f} tokens per forward, because: {reply.finish_reason}")
