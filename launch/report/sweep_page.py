"""The page of a sweep: its points, their curves together, the best one and what it was chosen by,
means over seeds.

Imports the standard library and trainer.config only.
"""

from __future__ import annotations

from pathlib import Path

from launch import words
from launch.report import run_page, sweep_charts, sweep_data
from launch.report.html import Html, section, table, text
from launch.report.sweep_charts import Line
from launch.report.sweep_data import Best, Point, Sweep
from launch.words import NONE, number, percent, shown
from trainer.config.files.file_clock import folder_clock
from trainer.config.files.layout import SweepDir

MOST_NAMED = 6  # failed points of one cause; the table below tells all


def write(sweep: SweepDir) -> Path:
    """Writes `sweep.report` from what is there. Returns its path."""
    return run_page.save(
        sweep.report, render(sweep_data.read(sweep, folder_clock(sweep.path.parent)))
    )


def render(sweep: Sweep) -> Html:
    """The whole page."""
    best = sweep_data.best(sweep.points)
    title = text(f"{sweep.job} · {sweep.sweep_id}")
    sections = [
        _best(sweep, best),
        _points(sweep, best),
        _seeds(sweep, best),
        _curves(sweep, best),
        _sweep(sweep),
    ]
    return run_page.document(
        title, _header(sweep, best), [s for s in sections if s], sweep.path, sweep.read_at
    )


def _header(sweep: Sweep, best: Best | None) -> str:
    result = ""
    if best and best.test_accuracy is not None:
        how = "chosen by validation" if best.by_validation else "chosen by it, on the test set"
        said = f'<span class="soft">test accuracy of the best point, {how}</span>'
        result = f'<p class="result"><b>{percent(best.test_accuracy)}</b> {said}</p>'
    tone, sentence = _state(sweep)
    told = "".join(
        f"<dt>{words.plural(len(whose), 'point')}</dt><dd>{text(why)}<span"
        f' class="soft">{text(_some(sweep, whose))}</span></dd>'
        for why, whose in sweep_data.failures(sweep.points).items()
    )
    return (
        f'<header><div><p class="kicker">Batchyard sweep</p><h1>{text(sweep.job)}</h1><p'
        f' class="id">{text(sweep.sweep_id)}</p></div>{result}</header><div class="end-of-run'
        f' {tone}"><p>{sentence}</p>{f"<dl>{told}</dl>" if told else ""}</div>'
    )


def _some(sweep: Sweep, whose: list[Point]) -> str:
    more = f" and {len(whose) - MOST_NAMED} more" if len(whose) > MOST_NAMED else ""
    return "; ".join(sweep.label(p.axes) for p in whose[:MOST_NAMED]) + more


def _state(sweep: Sweep) -> tuple[str, Html]:
    """(CSS class, how many points are how far)."""
    count, whole = sweep.count(), len(sweep.points)
    done = count.pop("completed", 0)
    rest = ", ".join(f"{number} {state}" for state, number in count.items())
    lost = count.get("failed") or count.get("no outcome") or count.get("unreadable")
    if lost or any(p.error for p in sweep.points if p.state != "completed"):
        tone, sign = run_page.STATES["failed"]
    elif count.get("running"):
        tone, sign = run_page.STATES["running"]
    else:
        tone, sign = run_page.STATES[
            "completed" if done + count.get("pruned", 0) == whole else "stopped"
        ]
    said = f"{done} of {words.plural(whole, 'point')} completed" + (f", {rest}" if rest else "")
    return tone, Html(
        f'<span class="state"><span aria-hidden="true">{sign}</span> {text(said)}</span>'
    )


def _best(sweep: Sweep, best: Best | None) -> Html:
    if best is None:
        why = (
            "There is no validation split to choose by."
            if sweep.of_numbers()
            else "No point is completed yet."
        )
        return section("The best point", f'<p class="soft">{why}</p>')
    return section(
        "The best point",
        f"<p><b>{text(sweep.label(best.point.axes))}</b> ({_link(sweep, best.point)})</p>",
        f"<p>{text(best.told[0].upper() + best.told[1:])}.</p>",
    )


def _link(sweep: Sweep, point: Point) -> Html:
    """The point's own page, by a relative path, where it has one."""
    run_id = point.run.run_id
    if not (point.run.path / "report.html").exists():
        return text(run_id)
    return Html(f'<a href="../{text(run_id)}/report.html">{text(run_id)}</a>')


def _points(sweep: Sweep, best: Best | None) -> Html:
    names = sweep.names()
    with_validation = any(p.best for p in sweep.points)
    heads = [(name, "figure") for name in names.values()]
    of_numbers, learnt = (
        sweep.of_numbers(),
        list(dict.fromkeys(name for p in sweep.points for name in _learnt(p))),
    )
    measured = (
        ("Last train loss", "Last test loss", *learnt) if of_numbers else ("Last test accuracy",)
    )
    heads += [
        (name, "figure") for name in (*measured, *(["Validation"] if with_validation else []))
    ]
    heads += [("State", "short"), ("Steps", "figure"), ("Wall time", "figure"), ("Run", "short")]
    rows = []
    for p in _best_first(sweep, best):
        tone, sign = run_page.STATES.get(p.state, ("info", "○"))
        verdict = words.VERDICTS.get(str(p.run.outcome.get("verdict")), ("", ""))[0]
        said = p.state.capitalize() + (
            f": {verdict}" if verdict and p.state not in ("running", "completed", "pruned") else ""
        )
        state = Html(
            f'<span class="state {tone}"><span aria-hidden="true">{sign}</span> {text(said)}</span>'
        )
        validation = [sweep_data.validation(p) or NONE] if with_validation else []
        rows.append(
            [
                *(p.value(axis) for axis in names),
                *_measured(p, learnt, of_numbers=of_numbers),
                *validation,
                state,
                shown(p.run.global_step(), "{:,.0f}".format),
                shown(p.lasted_s, words.seconds),
                _link(sweep, p),
            ]
        )
    notes = [
        "The best first. Links lead to the points' own pages where the run directories lie beside"
        " this one's."
    ]
    told = [
        (name, note)
        for p in sweep.points
        for name, _, note in run_page.fit(p.run)
        if name in _learnt(p) and note
    ]
    notes += (
        [". ".join(dict.fromkeys(f"{name}, {note}" for name, note in told)) + "."] if told else []
    )
    if sweep.unwanted:
        ids = ", ".join(f"{run_id} ({sweep.label(axes)})" for axes, run_id in sweep.unwanted)
        notes.append(f"Of earlier submits, and no longer wanted: {ids}.")
    note = "".join(f'<p class="note">{text(n)}</p>' for n in notes)
    return section("Points", table(heads, rows, "Points", best=0 if best else None), note)


def _measured(p: Point, learnt: list[str], *, of_numbers: bool) -> list[str]:
    """The point's figures on the test set; of numbers its losses, on the train rows too, and what
    it has learnt.
    """
    if of_numbers:
        return [
            *(shown(loss, lambda v: number(v, 4)) for loss in p.losses),
            *(_learnt(p).get(name, NONE) for name in learnt),
        ]
    return [shown(p.test_accuracy, percent)]


def _learnt(p: Point) -> dict[str, str]:
    """What a linear regression found, but for its losses: w, or its norm where they are many, and
    b.
    """
    told = {name: value for name, value, _ in run_page.fit(p.run)[:3] if value not in (None, NONE)}
    return {
        name: value for name, value in told.items() if name != "Norm of w" or "Learnt w" not in told
    }


def _best_first(sweep: Sweep, best: Best | None) -> list[Point]:
    """Completed points by what the best one was chosen by, then the others as the sweep
    has them.
    """

    def rank(p: Point) -> tuple[int, float]:
        if p.state != "completed":
            return 1, 0.0
        if best and best.by_validation and not p.best:  # its validations were not finite
            return 1, 0.0
        if best and best.by_validation:
            return 0, p.best["value"] * (1 if p.best["metric"] == "loss" else -1)
        return 0, -(p.test_accuracy or 0.0)

    return sorted(sweep.points, key=rank)


def _seeds(sweep: Sweep, best: Best | None) -> Html | None:
    groups = sweep_data.over_seeds(sweep.points)
    if not groups:
        return None
    names = {axis: name for axis, name in sweep.names().items() if axis != sweep_data.SEED}
    with_validation = any(g.validation for g in groups)
    in_percent = all(p.best.get("metric") != "loss" for p in sweep.points)
    heads = [(name, "figure") for name in names.values()] + [
        ("Seeds", "figure"),
        ("Last test accuracy", "figure"),
    ]
    heads += [("Validation", "figure")] if with_validation else []
    rows = [
        [
            *(sweep_data.axis_value(g.axes[axis]) for axis in names),
            f"{g.seeds}",
            sweep_data.spread(g.test_accuracy),
            *([sweep_data.spread(g.validation, in_percent=in_percent)] if with_validation else []),
        ]
        for g in groups
    ]
    marked = sweep_data.best_group(groups, best)
    note = "Mean ± standard deviation (over n - 1) of the completed points."
    if best and marked is not None:
        note += f" Marked: the best mean of what the best point was chosen by, the {best.by}."
    return section(
        "Over seeds", table(heads, rows, "Means over seeds", marked), f'<p class="note">{note}</p>'
    )


def _curves(sweep: Sweep, best: Best | None) -> Html:
    shades = sweep_charts.shades(sweep)
    plots = []
    of_numbers = [("Test loss", "test", "loss", False)] if sweep.of_numbers() else []
    for title, split, key, is_percent in (
        *of_numbers,
        ("Test accuracy", "test", "accuracy", True),
        ("Validation accuracy", "val", "accuracy", True),
        ("Validation loss", "val", "loss", False),
        ("Train loss", "train", "loss", False),
    ):
        lines, best_line = [], None
        for p in sweep.points:
            rows = (
                p.run.train
                if split == "train"
                else [r for r in p.run.evals if r.get("split") == split]
            )
            line = Line(sweep.label(p.axes), run_page.points(rows, key), shades.of(p))
            lines.append(line)
            best_line = line if best and p is best.point else best_line
        plots.append(
            sweep_charts.figure(title, lines, best_line, shades.legend, percent=is_percent)
        )
    figures = "".join(plots)
    if not figures:
        return section("Curves", '<p class="soft">No metrics yet.</p>')
    note = (
        "One line a point; a pointer on a line tells which. The best point is the thick line, and"
        " the number its end."
    )
    return section("Curves", f'<div class="charts">{figures}</div>', f'<p class="note">{note}</p>')


def _sweep(sweep: Sweep) -> Html:
    source = (
        f"<pre>{text(sweep.job_text)}</pre>"
        if sweep.job_text
        else '<p class="soft">No job.yaml.</p>'
    )
    rows = [
        [
            words.moment(s.get("started")),
            s.get("backend"),
            f"{len(s.get('points') or []):,}",
            " ".join(map(str, s.get("settings") or [])) or None,
        ]
        for s in sweep.submits
    ]
    heads = [
        ("Submitted (UTC)", "short"),
        ("Backend", "short"),
        ("Points", "figure"),
        ("--set", "id"),
    ]
    again = f"<pre>{text(f'batchyard submit {sweep.sweep_id}')}</pre>"
    note = (
        '<p class="note">Runs what is missing, continues what was stopped and tries again what'
        " failed.</p>"
    )
    return section(
        "The sweep",
        f'<div class="pair"><div><h3>job.yaml, as resolved</h3>{source}</div>'
        f"<div><h3>Submits</h3>{table(heads, rows, 'Submits')}"
        f"<h3>Again</h3>{again}{note}</div></div>",
    )
