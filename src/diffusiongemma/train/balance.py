"""How evenly the experts are used: a loss that keeps them so, and a report that says it.

The routers are watched through forward hooks; the network does not know.
"""

from types import TracebackType

import torch
from jaxtyping import Float
from torch import Tensor

from diffusiongemma.kernels.ops import Ops
from diffusiongemma.model.experts import Router
from diffusiongemma.model.model import DiffusionGemma


class Watch:
    """Watches all routers while it is open."""

    def __init__(self, model: DiffusionGemma) -> None:
        self._routers = [module for module in model.modules() if isinstance(module, Router)]
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> "Watch":
        self._hooks = [router.register_forward_hook(self._note) for router in self._routers]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def _note(
        self, router: Router, inputs: tuple[Tensor, Ops], output: tuple[Tensor, Tensor]
    ) -> None:
        if torch.is_grad_enabled():
            residual_SD, ops = inputs
            normed = ops.rms_norm(residual_SD, None, router.eps) * router.scale
            scores = ops.linear(normed * router.scale.shape[0] ** -0.5, router.weight)
            self._seen.append((scores.float().softmax(-1), output[0]))

    def balance(self) -> tuple[Tensor, Float[Tensor, "layers E"]]:
        """E * sum over experts of (share of tokens) * (mean probability); 1 if all are even.

        Fedus et al. 2021 (Switch Transformers), equations 4 to 6, with top-k shares; mean over
        layers.

        Returns:
            it, and for each layer the share of its routed tokens that each expert got.
        """
        mean = torch.stack([probability_SE.mean(0) for probability_SE, _ in self._seen])
        every = torch.arange(mean.shape[1], device=mean.device)
        # Counted by comparison: `bincount` looks at the host for the size of its answer.
        counts = [(e.reshape(-1, 1) == every).sum(0) / e.numel() for _, e in self._seen]
        shares = torch.stack(counts)
        return mean.shape[1] * (shares * mean).sum(1).mean(), shares
