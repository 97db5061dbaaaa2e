"""report.html and report.md: one self-contained page a browser shows with no network, and the same figures as text."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from gla_jax.eval.records import writing_to
from gla_jax.eval.report.pictures import Picture
from gla_jax.eval.results import BOUNDARY
from gla_jax.support.files import write_text

NAMES = {
    "miou": "mIoU",
    "macc": "mAcc",
    "aacc": "aAcc",
    "ber_1": "BER, width 1",
    "ber_8": "BER, width 8",
    "control_1": "control, width 1",
    "control_8": "control, width 8",
}
LONGEST_NAME = 40  # characters beside a bar; longer names go on in a second line
METRICS = (
    "mIoU, mAcc and aAcc as mmsegmentation's IoUMetric; BER (boundary error rate): how often the prediction jumps "
    "across a window edge where the truth does not; the control counts the same half a stride away from the edges."
)
STYLE = """
:root{--ink:#1c2430;--soft:#5d6878;--line:#dfe4ea;--bar:#2f6fb0;--other:#d9822b;--paper:#fff;--shade:#f5f7f9}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1280px;padding:32px 28px 64px;font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;color:var(--ink);background:var(--paper)}
h1{font-size:26px;margin:0 0 2px}h2{font-size:18px;margin:38px 0 12px}p{max-width:80ch}
.soft{color:var(--soft)}code{font-size:.92em;word-break:break-all}
.cards{display:flex;flex-wrap:wrap;gap:12px;margin:22px 0}
.card{border:1px solid var(--line);border-radius:8px;padding:10px 16px;min-width:118px;background:var(--shade)}
.card b{display:block;font-size:24px;line-height:1.25;font-variant-numeric:tabular-nums}.card span{color:var(--soft);
font-size:13px}.card.paper{border-style:dashed;background:none}.card.first b{color:var(--bar)}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:3px 18px 3px 0;text-align:left;
vertical-align:top;border-bottom:1px solid var(--line)}th{font-weight:600}
.bars{columns:calc(var(--names) + 230px);column-gap:36px;font-size:13px}.row{break-inside:avoid;display:grid;
grid-template-columns:var(--names) 1fr 58px;gap:8px;align-items:center;padding:1px 0}
.row .name{text-align:right;overflow-wrap:anywhere}.row .value{font-variant-numeric:tabular-nums;text-align:right}
.track{position:relative;background:var(--shade);height:12px;border-radius:2px}.track i{position:absolute;top:0;
height:100%;background:var(--bar);border-radius:2px}.track i.minus{background:var(--other)}
figure{margin:20px 0 26px}figure img{display:block;max-width:100%;border-radius:4px}figcaption{font-size:13px;
margin-top:6px}.tag{display:inline-block;padding:0 8px;border-radius:9px;background:var(--ink);color:#fff;
margin-right:8px}.chip{display:inline-block;margin-right:12px;white-space:nowrap}
.chip i{display:inline-block;width:11px;height:11px;
border-radius:2px;margin-right:4px;border:1px solid #0003;vertical-align:-1px}
"""


def write_report(out: Path, content: dict[str, Any], pictures: Sequence[Picture]) -> None:
    """report.html and report.md of a run's results, each whole or not at all.

    Raises UserError when they cannot be written.
    """
    with writing_to(out):
        write_text(out / "report.html", report_html(content, pictures))
        write_text(out / "report.md", report_markdown(content))


def report_html(content: dict[str, Any], pictures: Sequence[Picture]) -> str:
    """The page: figures, settings, a bar for every class, pictures, speed."""
    title = f"{content['benchmark']}, {content['method']}"
    present = [row for row in content["per_class"] if row["iou"] is not None]
    absent = [row["class"] for row in content["per_class"] if row["iou"] is None]
    bars = "".join(
        bar(row["class"], 0.0, row["iou"], figure(row["iou"])) for row in sorted(present, key=lambda r: -r["iou"])
    )
    notes = "".join(f"<p>{escape(note)}</p>" for note in _notes(content))
    absence = f"<p class=soft>Neither labelled nor predicted: {escape(', '.join(absent))}.</p>" if absent else ""
    shown = f"<h2>Best, median and worst images</h2>{''.join(map(_figure_html, pictures))}" if pictures else ""
    return page(
        title,
        f"<h1>{escape(title)}</h1><p class=soft>{escape(_subtitle(content))}</p>"
        f"<div class=cards>{_cards(content)}</div><p class=soft>{escape(METRICS)}</p>{notes}"
        f"<h2>IoU of every class, percent</h2>{bar_chart([row['class'] for row in present], bars)}{absence}"
        f"{shown}"
        f"<h2>Settings</h2>{_table(_settings(content))}<h2>Speed and machine</h2>{_table(_speed(content))}",
    )


def report_markdown(content: dict[str, Any]) -> str:
    """Figures, classes and settings as Markdown tables."""
    lines = [f"# {content['benchmark']}, {content['method']}", "", _subtitle(content), ""]
    lines += ["| figure | percent |", "|---|---:|"]
    lines += [f"| {NAMES[key]} | {figure(value)} |" for key, value in content["figures"].items()]
    if content["paper"]:
        lines.append(f"| mIoU in the paper, not measured here | {figure(content['paper']['miou'])} |")
    lines += ["", METRICS, ""]
    for note in _notes(content):
        lines += [note, ""]
    lines += ["| class | IoU | accuracy | labelled pixels |", "|---|---:|---:|---:|"]
    for row in content["per_class"]:
        lines.append(f"| {cell(row['class'])} | {figure(row['iou'])} | {figure(row['accuracy'])} | {row['label']} |")
    for heading, rows in (("setting", _settings(content)), ("speed and machine", _speed(content))):
        lines += ["", f"| {heading} | |", "|---|---|", *(f"| {name} | {cell(value)} |" for name, value in rows)]
    return "\n".join(lines) + "\n"


def figure(value: float | None) -> str:
    """A percentage with two decimals, as mmsegmentation rounds; a dash where there is none."""
    return "-" if value is None else f"{value:.2f}"


def cell(text: str) -> str:
    """Text that cannot end a cell of a Markdown table."""
    return text.replace("|", "\\|")


def counted(number: int, of: str = "image") -> str:
    """A number of things in words: 1 image, 2 images."""
    return f"{number} {of}{'' if number == 1 else 's'}"


def bar_chart(names: Sequence[str], bars: str) -> str:
    """Lines made by `bar`, with room for the longest of their names."""
    longest = min(max(map(len, names), default=1), LONGEST_NAME)
    return f'<div class=bars style="--names:{longest + 1}ch">{bars}</div>'


def page(title: str, body: str) -> str:
    """A whole HTML document that needs nothing else."""
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport "
        f'content="width=device-width"><title>{escape(title)}</title><style>{STYLE}</style></head>'
        f"<body>{body}</body></html>\n"
    )


def bar(name: str, start: float, end: float, value: str, minus: bool = False) -> str:
    """One line of a bar chart; start and end in percent of the track."""
    left, width = min(start, end), abs(end - start)
    kind = " class=minus" if minus else ""
    return (
        f"<div class=row><span class=name>{escape(name)}</span><span class=track>"
        f'<i{kind} style="left:{left:.2f}%;width:{width:.2f}%"></i></span><span class=value>{value}</span></div>'
    )


def picture_html(jpeg: bytes, caption: str) -> str:
    """A picture inside the page."""
    data = base64.b64encode(jpeg).decode()
    return f'<figure><img alt="" src="data:image/jpeg;base64,{data}"><figcaption>{caption}</figcaption></figure>'


def chips(legend: Sequence[tuple[str, str]]) -> str:
    """Coloured squares with class names."""
    return "".join(f'<span class=chip><i style="background:{c}"></i>{escape(n)}</span>' for n, c in legend)


def _figure_html(picture: Picture) -> str:
    return picture_html(
        picture.jpeg,
        f"<span class=tag>{picture.kind}</span><b>{escape(picture.image_id)}</b>, mIoU {figure(picture.miou)}. "
        f"Left to right: image with window edges, truth, prediction.<br>{chips(picture.legend)}",
    )


def _cards(content: dict[str, Any]) -> str:
    cards = [
        f"<div class='card{' first' if key == 'miou' else ''}'><b>{figure(value)}</b><span>{NAMES[key]}</span></div>"
        for key, value in content["figures"].items()
    ]
    if content["paper"]:
        paper = figure(content["paper"]["miou"])
        cards.append(
            f"<div class='card paper'><b>{paper}</b><span>mIoU in the paper<br>(not measured here)</span></div>"
        )
    return "".join(cards)


def _subtitle(content: dict[str, Any]) -> str:
    images = content["images"]
    part = f"{images['measured']} of " if images["measured"] != images["in_data"] else ""
    return f"{content['model']['name']}; {part}{counted(images['in_data'])}; figures in percent"


def _notes(content: dict[str, Any]) -> list[str]:
    """What a reader has to know beside the figures."""
    notes, common = [], content["common_edges"]
    if not content["images"]["labelled"]:
        notes.append("The images have no labels: predictions are saved, nothing is measured.")
    elif content["protocol"]["windows"] != common["windows"]:
        rates = "; ".join(f"{NAMES[key]}: {figure(common[key])}" for key in BOUNDARY)
        notes.append(f"At the edges of GLA's own windows, where all runs of a benchmark are counted too: {rates}.")
    if reasons := content["not_comparable_with_paper"]:
        notes.append(f"Not comparable with the paper's figure: {', '.join(reasons)}.")
    if twice := content["protocol"]["duplicates"]:
        notes.append(
            f"{', '.join(twice)} is both a background prompt and a class: equal logits go to the "
            "background, so the class cannot be won; --drop-duplicates drops the prompt."
        )
    return notes


def _settings(content: dict[str, Any]) -> list[tuple[str, str]]:
    row = content["protocol"]
    sizes = row["windows"]
    area = f"; classes of at most {row['area_threshold']:g} of the foreground go" if row["area_threshold"] else ""
    return [
        ("setting", f"tuned for {row['tuned_for']}" if row["tuned_for"] else row["setting"]),
        ("short side, window, stride", f"{sizes['short_side']}, {sizes['crop']}, {sizes['stride']} pixels"),
        ("logit scale, threshold", f"{row['logit_scale']:g}, {row['threshold']:g}{area}"),
        ("classes, queries", f"{len(content['per_class'])}, {row['queries']}"),
        ("towers", content["settings"]["dtype"]),
        ("protocol", row["sha256"]),
        ("model", content["model"]["sha256"]),
        ("data", f"{content['data']['origin']} ({content['data']['sha256'][:12]})"),
    ]


def _speed(content: dict[str, Any]) -> list[tuple[str, str]]:
    speed, machine = content["speed"], content["machine"]
    stages = ", ".join(f"{stage} {1000 * value:.1f}" for stage, value in speed["seconds_per_image"].items())
    memory = speed["peak_memory_mib"]
    return [
        ("images a second", f"{speed['images_per_second']:.2f}" if speed["images_per_second"] else "-"),
        ("milliseconds an image", stages),
        ("peak memory", f"{memory['host']} MiB" + (f", device {memory['device']} MiB" if memory["device"] else "")),
        ("processes, devices", f"{speed['processes']}, {machine['devices']} x {machine['device']}"),
        (
            "versions",
            ", ".join(f"{name} {v}" for name, v in {"gla-jax": content["version"], **machine["packages"]}.items()),
        ),
        ("finished", content["finished"]),
    ]


def _table(rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return f"<table>{cells}</table>"
