"""The programs of an image compiled for chips that are not there: memory, operations, bytes and their least time."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, NamedTuple

import jax

from gla_jax.bench.chips import COMPILER_OPTIONS, Chip, Target, compile_only
from gla_jax.bench.options import Options, report_head
from gla_jax.bench.products import PARTS, REST, Products, count_products
from gla_jax.bench.programs import Program, Work, abstract_model, on_chip
from gla_jax.bench.traffic import Traffic, read_traffic
from gla_jax.support.errors import UserError, first_line
from gla_jax.support.progress import track

FORMAT = "gla-jax compile 1"
LACKS_MEMORY = "RESOURCE_EXHAUSTED"


class Compiled(NamedTuple):
    """A compiled program; sizes in bytes a device, None where XLA refused, with its reason.

    unread: the reason where XLA compiles it and cannot read its own text, so that bytes moved and sent are not known.
    """

    name: str
    runs: int
    compile_seconds: float
    arguments: int | None = None
    output: int | None = None
    temporary: int | None = None
    code: int | None = None
    beside: int = 0
    refused: str | None = None
    unread: str | None = None

    @property
    def total(self) -> int | None:
        """All of it at once."""
        if self.refused is not None:
            return None
        return self.arguments + self.output + self.temporary + self.code + self.beside


class PartCost(NamedTuple):
    """A part of an image on one device: operations by way, bytes moved and sent, and seconds at the chip's peaks."""

    name: str
    flops: dict[str, float]
    moved: float
    sent: dict[str, float]
    calls: dict[str, float]
    compute: float
    memory: float
    link: float

    @property
    def seconds(self) -> float:
        """The roofline: the slowest of the three, which run at the same time at best."""
        return max(self.compute, self.memory, self.link)


@dataclass(frozen=True)
class Plan:
    """Programs and parts of an image, and in head what they hold for."""

    head: dict[str, Any]
    chip: Chip
    programs: tuple[Compiled, ...]
    parts: tuple[PartCost, ...]
    unknown: int = 0

    @property
    def needed(self) -> int | None:
        """Bytes of the program that needs most on a device; None where XLA refused one."""
        totals = [program.total for program in self.programs]
        return None if None in totals else max(totals)

    @property
    def fits(self) -> bool:
        """True if every program fits into the memory of the chip."""
        return self.needed is not None and self.needed <= self.chip.memory

    @property
    def seconds(self) -> float:
        """The least time, part after part."""
        return sum(part.seconds for part in self.parts)

    def ratio(self, field: str) -> float | None:
        """Anchors and attention over towers, by a figure of the parts in seconds; None without towers."""
        values = {part.name: getattr(part, field) for part in self.parts}
        over = values.get("anchors", 0.0) + values.get("attention", 0.0)
        return over / values["towers"] if values.get("towers") else None

    def as_dict(self) -> dict[str, Any]:
        """The whole of compile.json."""
        return self.head | {
            "programs": [program._asdict() | {"total": program.total} for program in self.programs],
            "parts": [part._asdict() | {"seconds": part.seconds} for part in self.parts],
            "needed": self.needed,
            "fits": self.fits,
            "seconds": self.seconds,
            "attention_over_towers": {"compute": self.ratio("compute"), "roofline": self.ratio("seconds")},
            "loops_of_unknown_length": self.unknown,
        }


def make_plan(options: Options, target: Target, mesh: str | None, command: str) -> Plan:
    """Compile the programs of an image for a target. Raises UserError for what cannot be compiled.

    Args:
        options: model, size, settings and prompts.
        target: chip and how many.
        mesh: DATAxWINDOW over the chips; None splits one image over all of them.
        command: as it was typed, for the record.
    """
    data, windows = target.mesh_shape(mesh)
    compiled, products, traffic = [], Products(Counter()), Traffic()
    with compile_only():
        whole, devices = abstract_model(options), target.devices(data * windows)
        params, config = on_chip(options, whole, devices[0])
        programs = Work(options, params, config, devices, data).programs()
        for program in track(programs, "programs compiled"):
            result, counted, moved = compile_program(program, target.chip)
            compiled.append(result)
            products += counted.times(program.runs / program.devices)
            traffic.add(moved, program.runs)
    head = {
        **report_head(FORMAT, command),
        "jax": jax.__version__,
        "compiler": f"{target.compiler.installed} {version(target.compiler.installed)}",
        "target": target.text,
        "mesh": [data, windows],
        "chip": asdict(target.chip),
        **options.described(params, config),
    }
    parts = tuple(part_costs(products, traffic, target.chip))
    return Plan(head, target.chip, tuple(compiled), parts, products.unknown + traffic.unknown)


def compile_program(program: Program, chip: Chip) -> tuple[Compiled, Products, Traffic]:
    """Compile one program; where it needs more memory than the chip has, XLA's sentence stands in its place."""
    lowering = "cuda" if chip.platform == "gpu" else "tpu"
    traced = jax.jit(program.function).trace(*program.arguments)
    products = count_products(traced.jaxpr.jaxpr, chip.platform, program.part)
    begun = time.perf_counter()
    lowered = traced.lower(lowering_platforms=(lowering,))
    try:
        compiled = lowered.compile(compiler_options=COMPILER_OPTIONS[chip.platform])
    except jax.errors.JaxRuntimeError as error:
        if LACKS_MEMORY not in str(error):
            raise UserError(f"XLA does not compile {program.name} for {chip.name}: {first_line(error)}.") from error
        seconds = time.perf_counter() - begun
        return Compiled(program.name, program.runs, seconds, refused=first_line(error)), products, Traffic()
    seconds, sizes = time.perf_counter() - begun, compiled.memory_analysis()
    result = Compiled(
        program.name,
        program.runs,
        seconds,
        sizes.argument_size_in_bytes,
        sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
        sizes.temp_size_in_bytes,
        sizes.generated_code_size_in_bytes,
        program.beside,
    )
    try:
        return result, products, read_traffic(compiled.as_text(), program.part)
    except jax.errors.JaxRuntimeError as error:  # libtpu 0.0.52 for v6e
        return result._replace(unread=first_line(error)), products, Traffic()


def part_costs(products: Products, traffic: Traffic, chip: Chip) -> Iterator[PartCost]:
    """The cost of every part that does anything, in the order of the data."""
    for part in (*PARTS, REST):
        flops = {way: count for (name, way), count in products.flops.items() if name == part}
        sent = {kind: count for (name, kind), count in traffic.sent.items() if name == part}
        calls = {kind: count for (name, kind), count in traffic.calls.items() if name == part}
        moved = traffic.moved[part]
        if flops or moved:
            compute = sum(chip.seconds(way, count) for way, count in flops.items())
            named = {str(way): count for way, count in flops.items()}
            memory, link = moved / chip.bandwidth, sum(sent.values()) / chip.link
            yield PartCost(part, named, moved, sent, calls, compute, memory, link)
