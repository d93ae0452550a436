"""A case's figures for people."""

from typing import Any

from diffusiongemma.core.letters import cut

_ERROR = 300  # letters of an error on a card; all of it stands in the folder


def card(line: dict[str, Any]) -> str:
    """A few lines on one case; its JSON stands beside it for programs."""
    rows = [f"== {line['case']}"]
    if "error" in line:
        said = " ".join(str(line["error"]).split())
        return f"{rows[0]}\n   failed: {cut(said, _ERROR)}"
    if "part_seconds" in line:
        rows += _step(line)
    elif "tokens_per_second" in line:
        rows += _answer(line)
    elif "read_bytes_per_second" in line:
        rows += _limits(line)
    elif "step_seconds" in line:
        rows.append(f"   {line['step_seconds'] * 1e3:.2f} ms a step")
    else:
        rows += [f"   {key}: {value}" for key, value in line.items() if key not in _KNOWN]
    return "\n".join(rows)


_KNOWN = ("case", "size", "part", "seconds_spent")


def _step(line: dict[str, Any]) -> list[str]:
    floors, rows = line["floor_part_seconds"], []
    for name, seconds in line["part_seconds"].items():
        floor = floors.get(name)
        least = f"   floor {floor * 1e3:6.2f}" if floor else ""
        rows.append(f"   {name:24} {seconds * 1e3:8.2f} ms{least}")
    step, share = f"   {'a step':24} {line['step_seconds'] * 1e3:8.2f} ms", ""
    if "floor_seconds" in line:
        step += f"   floor {line['floor_seconds'] * 1e3:6.2f}"
        step += f"   {line['over_floor']:.2f} times the floor"
        share = f", {100 * line['read_share']:.0f} % of what can be read"
    rows.append(step)
    rows.append(
        f"   with the host's look {line['step_and_look_seconds'] * 1e3:.2f} ms; "
        f"{line['bytes_per_second'] / 1e9:,.0f} GB/s{share}; {line['experts_hit']:.1f} experts a "
        "layer"
    )
    if line["limits"] != "measured":
        rows.append(f"   limits were not measured; floors are by {line['limits']}")
    plain = [name for name, by in line["kernels"].items() if by == "reference"]
    share = 100 * line["fallback_share"]
    rows.append(f"   run by references: {', '.join(plain) or 'nothing'}: {share:.0f} % of the time")
    return rows


def _answer(line: dict[str, Any]) -> list[str]:
    peak = line["peak_bytes"]
    more = "" if peak is None else f", {(peak - line['weight_bytes']) / 1e9:.1f} over the weights"
    memory = "" if peak is None else f"; peak {peak / 1e9:.1f} GB{more}"
    return [
        f"   {line['tokens_per_second']:,.0f} tokens/s, {line['decode_tokens_per_second']:,.0f} "
        f"without reading the prompt{memory}",
        f"   prompt {line['prefill_seconds'] * 1e3:.1f} ms, first draft "
        f"{line['first_draft_seconds'] * 1e3:.1f} ms, first canvas "
        f"{line['first_canvas_seconds'] * 1e3:.1f} ms, each later one "
        f"{line['later_canvas_seconds'] * 1e3:.1f} ms",
    ]


def _limits(line: dict[str, Any]) -> list[str]:
    rows = [f"   reads {line['read_bytes_per_second'] / 1e12:.2f} TB/s"]
    for name in ("bfloat16", "fp8"):
        rate = line.get(f"{name}_flops_per_second")
        if rate:
            rows.append(f"   {name} products {rate / 1e12:,.1f} TFLOP/s")
    rows.append(f"   an empty kernel of a graph {line['launch_seconds'] * 1e6:.2f} us")
    return rows
