"""Temperature as a function of the steps that remain."""


def temperature(step: int, steps: int, t_min: float, t_max: float) -> float:
    """Linear in the steps that remain, this one included: t_max at the first step.

    The last step has one step remaining, so it runs at t_min + (t_max - t_min) / steps, never at
    t_min itself.

    Args:
        step: this step, 1 to `steps`.
        steps: the most steps a canvas may take.
        t_min: the lower end of the schedule.
        t_max: the upper end.
    """
    return t_min + (t_max - t_min) * ((steps - step + 1) / steps)
