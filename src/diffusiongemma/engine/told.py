"""What is told of drafts: an event, a step with all that is known of it, a finished canvas."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusiongemma.core.errors import CheckpointError
from diffusiongemma.diffusion.config import SamplerConfig
from diffusiongemma.diffusion.drafts import Drafts
from diffusiongemma.diffusion.loop import DraftStep, Step
from diffusiongemma.diffusion.temperature import temperature
from diffusiongemma.engine.events import Refined
from diffusiongemma.engine.scheduler import Row
from diffusiongemma.kernels.readout import Readout


def event(row: Row, drafts: Drafts, slot: int, config: SamplerConfig) -> Refined:
    """A row's last step, for whoever watches."""
    here = (slot, slice(row.width))
    return Refined(
        canvas=row.canvas,
        step=row.step,
        best=tuple(drafts.best_BL[here].tolist()),
        entropy=tuple(drafts.entropy_BL[here].tolist()),
        accepted=tuple(drafts.accepted_BL[here].tolist()),
        revised=tuple(drafts.revised_BL[here].tolist()),
        temperature=temperature(row.step, row.most, config.t_min, config.t_max),
        before=tuple(drafts.before_BL[here].tolist()),
        after=tuple(drafts.canvas_BL[here].tolist()),
    )


def look(
    row: Row,
    drafts: Drafts,
    slot: int,
    config: SamplerConfig,
    hidden_BLD: Tensor,
    readout: Readout,
    *,
    done: bool,
    last: bool,
    replace: Callable[[Tensor], None],
) -> DraftStep:
    """A row's last step with all that is known of it, in copies.

    Args:
        row: as the host counts it.
        drafts: of all rows.
        slot: the row's place in them.
        config: its options.
        hidden_BLD: of this row.
        readout: of this row.
        done: whether the canvas is stable and sure.
        last: whether it is finished.
        replace: puts another canvas in place of the next one.
    """
    here = (slice(slot, slot + 1), slice(row.width))
    return DraftStep(
        canvas=row.canvas,
        number=row.step,
        temperature=temperature(row.step, row.most, config.t_min, config.t_max),
        before_BL=drafts.before_BL[here].clone(),
        hidden_BLD=hidden_BLD,
        readout=readout,
        step=Step(
            canvas_BL=drafts.canvas_BL[here].clone(),
            best_BL=drafts.best_BL[here].clone(),
            accepted_BL=drafts.accepted_BL[here].clone(),
            revised_BL=drafts.revised_BL[here].clone(),
            entropy_BL=drafts.entropy_BL[here].clone(),
            done_B=torch.tensor([done], device=hidden_BLD.device),
        ),
        last=last,
        _replace=replace,
        _vocabulary=drafts.vocabulary,
    )


def finished(row: Row, drafts: Drafts, slot: int) -> tuple[list[int], list[float], int]:
    """A canvas's most likely tokens, their entropies, and how often they were revised."""
    here = (slot, slice(row.width))
    revisions = int(drafts.revisions_B[slot])
    return drafts.best_BL[here].tolist(), drafts.entropy_BL[here].tolist(), revisions


def broken(row: Row, dtype: torch.dtype) -> CheckpointError:
    """Of a row whose step, the one to be counted next, gave what is no number."""
    return CheckpointError(
        f"the network's predictions are not numbers at step {row.step + 1} of canvas "
        f"{row.canvas}: its weights are damaged, or {dtype} is too narrow for them; fetch them "
        "again, or open with dtype float32"
    )
