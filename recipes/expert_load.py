"""Which share of its tokens each expert of a model gets, layer by layer, as a Markdown table.

    python recipes/expert_load.py FOLDER        of a model whose words know tools and thoughts

Tokens are those of the training tasks, prompts, canvases under noise, and answers.
"""

import sys

import torch
from edition import source

import diffusiongemma as dg
from diffusiongemma.train.balance import Watch
from diffusiongemma.train.data import pack
from diffusiongemma.train.objective import losses

BATCH, BATCHES = 16, 40


def main() -> None:
    """Measure and print."""
    gemma = dg.load(*sys.argv[1:2], dtype="float32")
    assert gemma.chat is not None
    gemma.model.requires_grad_(True)  # the watch notes passes that could be learned from
    # Far beyond the steps that a training run takes.
    feed, dice = source(gemma.chat, BATCH, first=10**8), torch.Generator().manual_seed(1)
    total: list[torch.Tensor] = []
    for number in range(BATCHES):
        examples = [feed(number * BATCH + n) for n in range(BATCH)]
        batch = pack(examples, gemma.model.config.canvas_length, eos=1, pad=0)
        with Watch(gemma.model) as watch:
            losses(gemma.model, batch, dice)
        total.append(watch.balance()[1])
    share_LE = torch.stack(total).mean(0)
    heads = [f"expert {n + 1}" for n in range(share_LE.shape[1])]
    print(f"| layer | {' | '.join(heads)} |\n|--:|{'--:|' * len(heads)}")
    for layer, shares in enumerate(share_LE.tolist(), start=1):
        print(f"| {layer} | {' | '.join(f'{100 * share:.1f} %' for share in shares)} |")


if __name__ == "__main__":
    main()
