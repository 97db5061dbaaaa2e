"""A plan as tables: for a terminal by rich, in Markdown elsewhere; and as JSON."""

from collections.abc import Sequence
from pathlib import Path

from gla_jax.bench.memory import GIB
from gla_jax.bench.plan import PartCost, Plan
from gla_jax.bench.report import DASH, WORDS, size_text, table
from gla_jax.support.files import write_json

FILE = "compile.json"
EMPTY = {"0", size_text(0), DASH}
PROGRAMS = ("program", "runs", "compile s", "arguments", "output", "temporary", "code", "beside", "total")
COSTS = ("part", "products", "TFLOP", "GB moved", "GB sent", "compute ms", "memory ms", "link ms", "roofline ms")
NOTES = (
    "All figures are of one device. Total: needed at once; beside: arrays of the image that a program does not touch.",
    "TFLOP: matrix products, loops as often as they run. x3: passes over the unit, which the milliseconds count.",
    "Moved: operands and results of the compiled operations, as if no cache held them. Sent: to other devices.",
    "Roofline: the longest of the three times at the chip's published peaks; no program can be faster.",
)


def head_lines(plan: Plan) -> list[str]:
    """The image and chip of the plan, and the answer: does it fit, how long at least."""
    head, chip = plan.head, plan.chip
    (data, windows), image = head["mesh"], head["image"]
    peaks = ", ".join(f"{peak / 1e12:.4g} TFLOP/s {unit}" for unit, peak in chip.peaks.items())
    needed = "more than there is" if plan.needed is None else size_text(plan.needed)
    lines = [
        f"{'Fits' if plan.fits else 'Does not fit'}: {needed} of {chip.memory / GIB:.4g} GiB. At least "
        f"{1e3 * plan.seconds:.4g} ms for {'an image' if data == 1 else f'{data} images at once'}.",
        f"{head['target']}: mesh {data}x{windows}, {chip.memory / GIB:.4g} GiB, {chip.bandwidth / 1e9:.4g} GB/s, "
        f"{peaks}, {chip.link / 1e9:.4g} GB/s to other devices ({chip.source}).",
        f"{head['model']['name']}, {image['size'][0]}x{image['size'][1]} pixels, {image['windows']} windows, "
        f"{image['tokens']:,} tokens, {image['queries']} prompts, {head['settings']['dtype']} towers, precision "
        f"{head['settings']['method']['precision']}; gla-jax {head['version']}, jax {head['jax']}, "
        f"{head['compiler']}, {head['date']}.",
    ]
    if (compute := plan.ratio("compute")) is not None:
        by = f"{compute:.2f} by products, {plan.ratio('seconds'):.2f} by roofline"
        lines.append(f"Attention with its anchors over towers: {by}.")
    if plan.unknown:
        lines.append(f"{plan.unknown} loops of unknown length are counted once.")
    lines += [
        f"Bytes of {each.name} are not counted, its times are of products alone: XLA cannot read its text back "
        f"({each.unread})."
        for each in plan.programs
        if each.unread
    ]
    lines += [f"XLA refuses {each.name}: {each.refused}" for each in plan.programs if each.refused]
    return lines


def without_empty(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """A table without the columns in which nothing stands, as links have nothing on one device."""
    kept = [column for column in zip(*rows, strict=True) if not set(column[1:]) <= EMPTY]
    return list(zip(*kept, strict=True))


def program_rows(plan: Plan) -> list[tuple[str, ...]]:
    """The table of programs."""
    rows = []
    for each in plan.programs:
        sizes = (each.arguments, each.output, each.temporary, each.code, each.beside, each.total)
        rows.append((each.name, str(each.runs), f"{each.compile_seconds:.1f}", *map(size_text, sizes)))
    return without_empty([PROGRAMS, *rows])


def part_rows(plan: Plan) -> list[tuple[str, ...]]:
    """The table of parts, and their sum."""
    rows = [part_row(part) for part in plan.parts]
    flops, moved = sum(sum(part.flops.values()) for part in plan.parts), sum(part.moved for part in plan.parts)
    sent = sum(sum(part.sent.values()) for part in plan.parts)
    seconds = [sum(getattr(part, name) for part in plan.parts) for name in ("compute", "memory", "link", "seconds")]
    return without_empty([COSTS, *rows, ("all", "", *_figures(flops, moved, sent, seconds))])


def part_row(part: PartCost) -> tuple[str, ...]:
    """One part: its products by way, the largest first, and its collectives by name."""
    ways = sorted(part.flops.items(), key=lambda item: -item[1])
    total = sum(part.flops.values())
    words = [
        way if count > 0.995 * total else f"{way} {count / total:.0%}" for way, count in ways if count > total / 200
    ]
    words += [f"{calls:.0f} {kind}" for kind, calls in part.calls.items()]
    seconds = (part.compute, part.memory, part.link, part.seconds)
    return part.name, ", ".join(words) or DASH, *_figures(total, part.moved, sum(part.sent.values()), seconds)


def _figures(flops: float, moved: float, sent: float, seconds: Sequence[float]) -> tuple[str, ...]:
    return f"{flops / 1e12:.4g}", f"{moved / 1e9:.4g}", f"{sent / 1e9:.4g}", *(f"{1e3 * each:.4g}" for each in seconds)


def plain(plan: Plan) -> str:
    """The plan in Markdown."""
    tables = ("\n".join(table(rows)) for rows in (program_rows(plan), part_rows(plan)))
    return "\n\n".join(["\n".join(head_lines(plan)), *tables, "\n".join(NOTES)])


def print_plan(plan: Plan) -> None:
    """The plan on a terminal, or in Markdown where standard output is none."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        print(plain(plan))
        return
    answer, *others = head_lines(plan)
    console.print(answer, style="bold green" if plan.fits else "bold red", markup=False)
    console.print(*others, sep="\n", markup=False)
    for head, *rows in (program_rows(plan), part_rows(plan)):
        view = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for name in head:
            words = name in ("program", *COSTS[:WORDS])
            view.add_column(name, justify="left" if words else "right", no_wrap=name in ("program", "part"))
        for row in rows:
            view.add_row(*row, style="bold" if row[0] == "all" else None)
        console.print(view)
    console.print(*NOTES, sep="\n", style="dim", markup=False)


def write_plan(plan: Plan, folder: Path) -> Path:
    """compile.json; returns its path."""
    write_json(folder / FILE, plan.as_dict())
    return folder / FILE
