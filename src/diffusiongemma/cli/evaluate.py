"""The verb `evaluate`: held-out problems, scored exactly, as a table."""

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from diffusiongemma.cli.asking import open_model
from diffusiongemma.cli.options import Parser, add_opened_model, add_sampling, check_sampling, whole
from diffusiongemma.cli.output import say
from diffusiongemma.core.errors import OptionError
from diffusiongemma.core.files import check_writable, write_whole
from diffusiongemma.evals.tasks import TASKS

if TYPE_CHECKING:
    from diffusiongemma.evals.run import Record

USAGE = "diffusiongemma evaluate [-m FOLDER] [options]"
ABOUT = "Ask problems that no training has seen, score the answers exactly, print a table."
AFTER = """\
examples:
  diffusiongemma evaluate                                the table of the small model's card
  diffusiongemma evaluate --task sorting --count 100 --wrong 5
  diffusiongemma evaluate -m FOLDER --records answers.jsonl
"""


def parser() -> Parser:
    """The options of this verb."""
    made = Parser(USAGE, ABOUT, AFTER)
    add_opened_model(made)
    asked = made.add_argument_group("the problems")
    asked.add_argument(
        *("--task",),
        metavar="NAME",
        action="append",
        default=[],
        help=f"{', '.join(TASKS)} (repeatable; all)",
    )
    asked.add_argument(
        "--count", type=whole, default=2000, metavar="N", help="problems a task (2000)"
    )
    asked.add_argument("--seed", type=whole, default=0, metavar="N", help="of problems, draws (0)")
    asked.add_argument("--batch", type=whole, default=64, metavar="N", help="answered at once (64)")
    shown = made.add_argument_group("what is shown")
    shown.add_argument(
        "--wrong", type=whole, default=0, metavar="N", help="print the first N failures of a task"
    )
    shown.add_argument("--records", metavar="FILE", help="write every answer here, as JSON lines")
    add_sampling(made)
    return made


def run(args: argparse.Namespace) -> int:
    """Ask and score."""
    check_sampling(args.sampling)
    if args.wrong < 0:
        raise OptionError(f"--wrong must be 0 or more, got {args.wrong}")
    if args.records is not None:
        check_writable(args.records)

    from tqdm import tqdm

    from diffusiongemma.evals.report import table
    from diffusiongemma.evals.run import evaluate

    names = list(dict.fromkeys(args.task)) or list(TASKS)
    gemma = open_model(args)
    with tqdm(total=len(names) * args.count, unit="problem", disable=None, leave=False) as bar:
        records = []
        found = evaluate(
            gemma, names, args.count, seed=args.seed, batch=args.batch, **args.sampling
        )
        for record in found:
            records.append(record)
            bar.update()
            bar.set_postfix_str(f"{record.task}, {_share(records)}", refresh=False)
    say(table(records))
    for line in _failures(records, args.wrong):
        say(line)
    if args.records is not None:
        write_whole(args.records, "".join(f"{json.dumps(asdict(one))}\n" for one in records))
    return 0


def _share(records: Sequence["Record"]) -> str:
    own = [record.right for record in records if record.task == records[-1].task]
    return f"{100 * sum(own) / len(own):.1f} % right"


def _failures(records: Iterable["Record"], most: int) -> list[str]:
    lines: list[str] = []
    seen: dict[str, int] = {}
    for record in records:
        if not record.right and seen.get(record.task, 0) < most:
            seen[record.task] = seen.get(record.task, 0) + 1
            said = f"{record.task}: {record.prompt}\n  expected {record.expected}"
            lines.append(f"\n{said}\n  got      {record.text}")
    return lines
