"""The verb `evaluate`: held-out problems, scored exactly, as a table."""

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from diffusiongemma.cli.asking import open_model
from diffusiongemma.cli.options import Parser, add_opened_model, add_sampling, check_sampling, take
from diffusiongemma.cli.output import as_json, check_open, give, say
from diffusiongemma.core.files import check_writable, write_whole
from diffusiongemma.evals.tasks import TASKS

if TYPE_CHECKING:
    from diffusiongemma.evals.run import Record

USAGE = "diffusiongemma evaluate [-m FOLDER] [options]"
ABOUT = "Ask problems that no training has seen, score the answers exactly, print tables."
AFTER = """\
examples:
  diffusiongemma evaluate                                some problems of every shape
  diffusiongemma evaluate --count 100                    the tables of the small model's card
  diffusiongemma evaluate --task sorting --count 100 --wrong 5
  diffusiongemma evaluate -m FOLDER --out answers.jsonl
"""


def parser() -> Parser:
    """The flags of this verb."""
    made = Parser("evaluate", USAGE, ABOUT, AFTER, stray="a task is --task {word}")
    add_opened_model(made)
    asked = made.add_argument_group("the problems")
    take(asked, "task", many=True, choices=tuple(TASKS), usual="all")
    take(asked, "count", default=50, least=1, more=", which is a task's shape")
    take(asked, "seed", default=0, more=" and problems")
    take(asked, "batch", default=64)
    shown = made.add_argument_group("what is shown and written")
    take(shown, "wrong", default=0)
    take(shown, "json")
    take(shown, "out", more=": every answer, as JSON lines")
    add_sampling(made)
    return made


def run(args: argparse.Namespace) -> int:
    """Ask and score."""
    check_open()
    check_sampling(args.sampling)
    if args.out is not None:
        check_writable(args.out)

    from diffusiongemma.evals.report import rows, shapes, table

    records = _asked(args)
    found, parts, failures = rows(records), shapes(records), _failures(records, args.wrong)
    if args.json:
        report: dict[str, Any] = {
            "tasks": [asdict(row) for row in found],
            "shapes": [asdict(row) for row in parts],
        }
        if args.wrong:
            report["failures"] = [asdict(record) for record in failures]
        give(as_json(report, indent=2))
    else:
        say(f"{table(found)}\n\n{table(parts)}")
        for record in failures:
            say(f"\n{record.task}: {record.prompt}\n  expected {record.expected}")
            say(f"  got      {record.text}")
    if args.out is not None:
        write_whole(args.out, "".join(f"{json.dumps(asdict(one))}\n" for one in records))
    return 0


def _asked(args: argparse.Namespace) -> list["Record"]:
    from tqdm import tqdm

    from diffusiongemma.evals.run import evaluate, shapes_of

    names = list(dict.fromkeys(args.task)) or list(TASKS)
    most = len(shapes_of(names)) * args.count  # some shapes have fewer
    gemma = open_model(args)
    with tqdm(total=most, unit="problem", disable=None, leave=False) as bar:
        records: list[Record] = []
        found = evaluate(
            gemma, names, args.count, seed=args.seed, batch=args.batch, **args.sampling
        )
        for record in found:
            records.append(record)
            bar.update()
            bar.set_postfix_str(f"{record.task}, {_share(records)}", refresh=False)
    return records


def _share(records: Sequence["Record"]) -> str:
    own = [record.right for record in records if record.task == records[-1].task]
    return f"{100 * sum(own) / len(own):.1f} % right"


def _failures(records: Iterable["Record"], most: int) -> list["Record"]:
    """The first of each task that are not right."""
    found: list[Record] = []
    seen: dict[str, int] = {}
    for record in records:
        if not record.right and seen.get(record.task, 0) < most:
            seen[record.task] = seen.get(record.task, 0) + 1
            found.append(record)
    return found
