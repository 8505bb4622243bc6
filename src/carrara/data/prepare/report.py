"""The report of a preparation: one page with its pictures inside: what was kept, what was not, and why."""

from __future__ import annotations

import base64
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from carrara.data.prepare.plan import Clip, Plan
from carrara.data.prepare.reasons import REASONS
from carrara.data.prepare.sheets import STRIP, frames_of, jpeg, strip

KEPT_SHOWN, DROPPED_SHOWN, LISTED = 24, 6, 40  # clips with pictures; of each reason with pictures, and in words

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --soft: #626a73; --paper: #fbfaf8; --card: #fff; --line: #e2dfd9;
  --bar: #2b7a4b; --off: #c8500f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e4df; --soft: #9aa0a8; --paper: #16181b; --card: #1e2125;
  --line: #34383e; --bar: #5fbf86; --off: #ff9a5c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 5rem; max-width: 74rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.02em; overflow-wrap: anywhere; }
h2 { font-size: 1.35rem; margin: 2.8rem 0 .6rem; padding-top: .8rem; border-top: 2px solid var(--line); }
h3 { font-size: 1rem; margin: 1.8rem 0 .2rem; }
p { margin: .3rem 0 .8rem; max-width: 62rem; }
.soft { color: var(--soft); font-size: .9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; background: var(--card); border: 1px solid var(--line); font-size: .92rem; }
th, td { padding: .34rem .8rem; text-align: right; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; }
th { font-weight: 600; } tr > :first-child, td.text { text-align: left; } tbody tr:last-child > * { border-bottom: 0; }
.share { display: flex; height: .8rem; border-radius: .4rem; overflow: hidden; background: var(--off);
  margin: .8rem 0 .3rem; }
.share span { background: var(--bar); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr)); gap: 1.1rem; margin: .8rem 0; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); padding: .6rem; }
figure img { width: 100%; height: auto; display: block; }
figcaption { font-size: .84rem; margin-top: .45rem; overflow-wrap: anywhere; }
figcaption .soft { font-size: .78rem; }
ul.files { font-size: .86rem; color: var(--soft); padding-left: 1.1rem; margin: .3rem 0; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1.2rem; font-size: .88rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media print { figure, table { break-inside: avoid; } }
"""


def draw_pictures(plan: Plan, folder: Path) -> None:
    """Strips of what the page will show, made before pieces go into shards; those that are there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for clip in _chosen(plan.clips):
        path = folder / f"{clip.key}.jpg"
        if not path.is_file():
            _save(path, jpeg_of(clip.file))
    clips = {clip.key: clip for clip in plan.clips}
    for number, row in _pictured(plan.dropped):
        path = folder / f"dropped-{number}.jpg"
        if path.is_file():
            continue
        if "piece" in row:  # a duplicate beside what it repeats
            pair = [strip(frames_of(file, 2, STRIP)) for file in (clips[row["duplicate_of"]].file, Path(row["piece"]))]
            gap = np.full((pair[0].shape[0], 12, 3), 255, np.uint8)
            _save(path, jpeg(np.concatenate([pair[0], gap, pair[1]], axis=1)))
        else:
            _save(path, Path(row["picture"]).read_bytes())


def jpeg_of(piece: Path) -> bytes:
    """A strip of a piece."""
    return jpeg(strip(frames_of(piece, 4, STRIP)))


def write_page(plan: Plan, rows: Sequence[Mapping[str, Any]], index: Mapping[str, Any], pictures: Path) -> str:
    """The page as HTML; `rows` are those of the manifest, `index` is prepared.json."""
    name = escape(index["source"])
    moving = [row for row in rows if row["frames"] > 1]
    kept = sum(row["end"] - row["start"] for row in moving)
    lost = sum(_seconds(row) for row in plan.dropped)
    said = [f"{len(moving)} clips ({_time(kept)})", f"{len(rows) - len(moving)} pictures"]
    captioned = sum(row["caption"] is not None for row in rows)
    share = 100 * kept / (kept + lost) if kept + lost else 0
    parts = [
        f"<h1>What was prepared of {name}</h1>",
        f"<p>Kept: <b>{' and '.join(said)}</b> of {index['files']} files, {captioned} with a caption. "
        f"Dropped: <b>{len(plan.dropped)} pieces or files</b>, {_time(lost)} where that is known.</p>",
        f'<div class="share"><span style="width:{share:.1f}%"></span></div>',
        f'<p class="soft">{share:.0f}% of the time that could be read was kept.</p>',
        _buckets(rows),
        _why(plan.dropped),
        "<h2>Kept</h2>",
        _shown_of(len(_chosen(plan.clips)), len(rows)),
        '<div class="grid">',
        *(_clip(rows[int(clip.key)], pictures / f"{clip.key}.jpg") for clip in _chosen(plan.clips)),
        "</div>",
        "<h2>Dropped</h2>" if plan.dropped else "",
        *_dropped(plan, pictures),
        "<h2>Settings</h2>",
        _facts(index["settings"]),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>What was prepared of {name}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _chosen(clips: Sequence[Clip]) -> list[Clip]:
    """Clips to show, evenly spread."""
    count = min(KEPT_SHOWN, len(clips))
    return [clips[index] for index in np.linspace(0, len(clips) - 1, count).round().astype(int)] if count else []


def _pictured(dropped: Sequence[Mapping[str, Any]]) -> list[tuple[int, Mapping[str, Any]]]:
    """Dropped rows to show with a picture, by their number: of each reason a few, of different files first."""
    found: dict[str, list[tuple[int, Mapping[str, Any]]]] = defaultdict(list)
    for number, row in enumerate(dropped):
        if "picture" in row or "piece" in row:
            found[row["reason"]].append((number, row))
    chosen = []
    for rows in found.values():
        repeats, order = Counter[str](), []
        for number, row in rows:
            order.append((repeats[row["source"]], number, row))
            repeats[row["source"]] += 1
        order.sort(key=lambda each: each[:2])
        chosen += [(number, row) for _, number, row in order[:DROPPED_SHOWN]]
    return sorted(chosen, key=lambda each: each[0])


def _buckets(rows: Sequence[Mapping[str, Any]]) -> str:
    counts = Counter((row["frames"], row["width"], row["height"]) for row in rows)
    if not counts:
        return "<p>Nothing was kept.</p>"
    lines = "".join(
        f"<tr><th>{'picture' if frames == 1 else f'{frames} frames'}</th><td>{width}x{height}</td><td>{count}</td></tr>"
        for (frames, width, height), count in sorted(counts.items())
    )
    head = "<thead><tr><th>bucket</th><th>size</th><th>kept</th></tr></thead>"
    return f'<div class="wide"><table>{head}<tbody>{lines}</tbody></table></div>'


def _why(dropped: Sequence[Mapping[str, Any]]) -> str:
    if not dropped:
        return ""
    counts = Counter(row["reason"] for row in dropped)
    times: Counter[str] = Counter()
    for row in dropped:
        times[row["reason"]] += _seconds(row)  # type: ignore[assignment]  # seconds, not counts
    lines = "".join(
        f'<tr><th><a href="#{reason}">{reason}</a></th><td>{counts[reason]}</td>'
        f'<td>{_time(times[reason]) if times[reason] else ""}</td><td class="text">{escape(meaning)}</td></tr>'
        for reason, meaning in REASONS.items()
        if counts[reason]
    )
    head = "<thead><tr><th>dropped</th><th>pieces</th><th>time</th><th></th></tr></thead>"
    return f'<p></p><div class="wide"><table>{head}<tbody>{lines}</tbody></table></div>'


def _dropped(plan: Plan, pictures: Path) -> list[str]:
    by_reason: dict[str, list[tuple[int, Mapping[str, Any]]]] = defaultdict(list)
    for number, row in enumerate(plan.dropped):
        by_reason[row["reason"]].append((number, row))
    pictured = {number for number, _ in _pictured(plan.dropped)}
    parts = []
    for reason, meaning in REASONS.items():
        if not (rows := by_reason.get(reason)):
            continue
        parts.append(f'<h3 id="{reason}">{reason}: {len(rows)}</h3><p class="soft">{escape(meaning)}</p>')
        drawn = [each for each in rows if each[0] in pictured]
        if drawn:
            figures = "".join(
                _figure(pictures / f"dropped-{number}.jpg", _where(row), _also(row, row["sentence"]))
                for number, row in drawn
            )
            parts.append(f'<div class="grid">{figures}</div>')
        told = [row for number, row in rows if number not in pictured]
        lines = [f"<li>{_where(row)}: {escape(_also(row, row['sentence']))}</li>" for row in told[:LISTED]]
        if len(told) > LISTED:
            lines.append(f"<li>and {len(told) - LISTED} more in dropped.jsonl</li>")
        if lines:
            parts.append(f'<ul class="files">{"".join(lines)}</ul>')
    return parts


def _clip(row: Mapping[str, Any], picture: Path) -> str:
    caption = escape(row["caption"]) if row["caption"] is not None else '<span class="soft">without a caption</span>'
    by = f" Caption by {row['caption_by']}." if row["caption_by"] not in (None, "given") else ""
    original = row["original"]
    rate = f" at {original['fps']:.4g} fps" if original["fps"] else ""
    about = f"{row['width']}x{row['height']} of {original['width']}x{original['height']}{rate}.{by}"
    return _figure(picture, caption, f"{_place(row)}. {about}")


def _figure(picture: Path, said: str, about: str) -> str:
    data = base64.b64encode(picture.read_bytes()).decode("ascii")
    return (
        f'<figure><img alt="" src="data:image/jpeg;base64,{data}">'
        f'<figcaption>{said}<br><span class="soft">{escape(about)}</span></figcaption></figure>'
    )


def _also(row: Mapping[str, Any], sentence: str) -> str:
    return f"{sentence} ({row['duplicate_of']}, at the left)" if "duplicate_of" in row else sentence


def _where(row: Mapping[str, Any]) -> str:
    return escape(_place(row))


def _place(row: Mapping[str, Any]) -> str:
    source = row["source"].encode("utf-8", "replace").decode()
    if row["start"] is None:
        return source
    return f"{source}, {row['start']:.2f} s" + (f" to {row['end']:.2f} s" if row["end"] is not None else " on")


def _seconds(row: Mapping[str, Any]) -> float:
    return row["end"] - row["start"] if row["start"] is not None and row["end"] is not None else 0.0


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _shown_of(shown: int, count: int) -> str:
    return f'<p class="soft">{shown} of {count}, evenly spread.</p>' if shown < count else ""


def _facts(settings: Mapping[str, Any]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in settings.items()) + "</dl>"


def _save(path: Path, data: bytes) -> None:
    partial = path.with_suffix(".partial")
    partial.write_bytes(data)
    partial.replace(path)
