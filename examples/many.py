"""Answer several prompts together. Each gets the answer that it would get alone.

python examples/many.py FOLDER
"""

import sys

import diffusiongemma as dg

PROMPTS = ["Why is the sky blue?", "Name a prime above 90.", "Write a line about rain."]

gemma = dg.load(sys.argv[1] if sys.argv[1:] else sys.exit(__doc__))
replies = gemma.generate_many(PROMPTS, seed=[1, 2, 3], max_new_tokens=32)
for prompt, reply in zip(PROMPTS, replies, strict=True):
    print(f"{prompt}\n    {reply.text!r} ({reply.stats.new_tokens} tokens)")

alone = gemma.generate(PROMPTS[1], seed=2, max_new_tokens=32)
print("alone, the second one is", "the same" if alone.tokens == replies[1].tokens else "another")
