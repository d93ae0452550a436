"""Answer several prompts together. Each gets the answer that it would get alone.

python examples/many.py [FOLDER]
"""

import sys

import diffusiongemma as dg

PROMPTS = ["Sort: 52 7 30 9 11", "Reverse: lantern", "JSON: Ada, 36, lives in Bern."]

gemma = dg.load(*sys.argv[1:2])
replies = gemma.generate_many(PROMPTS, seed=[1, 2, 3], max_new_tokens=64)
for prompt, reply in zip(PROMPTS, replies, strict=True):
    print(f"{prompt}\n    {reply.text!r} ({reply.stats.new_tokens} tokens)")

alone = gemma.generate(PROMPTS[1], seed=2, max_new_tokens=64)
print("alone, the second one is", "the same" if alone.tokens == replies[1].tokens else "another")
