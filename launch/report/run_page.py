"""The report page: facts in, one self-contained HTML file out.

Imports the standard library and trainer.config only.
"""

from __future__ import annotations

import math
import os
import shlex
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from launch import words
from launch.report import chart, run_data
from launch.report.epochs import epochs
from launch.report.evaluation import by_class
from launch.report.html import Html, fact_table, flat, section, table, text
from launch.report.images import pictures
from launch.report.masks import scenes
from launch.report.run_data import AttemptFacts, Facts, Row
from launch.report.style import CSS
from launch.words import NONE, finite, number, percent, shown
from trainer.config.files.layout import RunDir

STATES = {
    "completed": ("good", "✓"),
    "stopped": ("warn", "❚❚"),
    "pruned": ("info", "✂"),
    "failed": ("bad", "✕"),
    "running": ("info", "●"),
}
# The browser itself refuses whatever this page would load; its pictures stand in it.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
MOST_EVALUATIONS = 200  # rows of the table; the chart shows all
MOST_WEIGHTS = 5  # of a regression, told one by one
MOST_MARKS = 5  # attempts named below the charts; the charts mark all


def write(run: RunDir) -> Path:
    """Writes `run.report` from what is there. Returns its path."""
    return save(run.report, render(run_data.read(run)))


def save(path: Path, page: Html) -> Path:
    """Writes a page in one step: a reader sees the old one or the new one. Returns its path."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # A lone surrogate, legal in JSON, has no UTF-8: it becomes a question mark.
    temporary.write_text(page, encoding="utf-8", errors="replace")
    temporary.replace(path)
    return path


def render(run: Facts) -> Html:
    """The whole page."""
    sections = (
        _numbers,
        _curves,
        epochs,
        by_class,
        scenes,
        pictures,
        _speed,
        _attempts,
        _job,
        _code,
    )
    title = text(f"{run.job} · {run.run_id}")
    return document(
        title, _header(run), [section(run) for section in sections], run.path, run.read_at
    )


def document(title: Html, header: str, sections: list[str], path: Path, read_at: float) -> Html:
    """A page around its sections."""
    return Html(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta'
        f' charset="utf-8">\n<title>{title}</title>\n<meta http-equiv="Content-Security-Policy"'
        f' content="{escape(POLICY)}">\n<meta name="viewport" content="width=device-width,'
        f' initial-scale=1">\n<style>{CSS}</style>\n</head>\n<body>\n{header}\n<main>\n'
        + "\n".join(part for part in sections if part)
        + f"\n</main>\n<footer>Written {words.moment(read_at)} UTC from {text(path)}. "
        "This file loads nothing and can be sent as it is.</footer>\n</body>\n</html>\n"
    )


def _state(outcome: Row, *, running: bool, started: bool) -> tuple[str, Html, str]:
    """(CSS class, status and verdict in words, a sentence) of an outcome, or of there
    being none.
    """
    status, verdict = outcome.get("status"), outcome.get("verdict")
    if status:
        short, sentence = words.VERDICTS.get(str(verdict), (str(verdict or "no verdict"), ""))
        if (status, verdict) == ("failed", "timeout"):
            sentence = words.FAILED_BY_TIMEOUT
        said = f"{str(status).capitalize()}: {short}" if short else str(status).capitalize()
    elif running:
        status, said, sentence = "running", "Running", "An attempt holds this run's lock."
    elif started:
        said, sentence = "No outcome", "The newest attempt has not left its verdict."
    else:
        said, sentence = "Not started", "No attempt has been made."
    tone, sign = STATES.get(str(status), ("info", "○"))
    return tone, Html(f'<span aria-hidden="true">{sign}</span> {text(said)}'), sentence


def _header(run: Facts) -> str:
    tone, state, sentence = _state(run.outcome, running=run.running, started=bool(run.attempts))
    if run.outcome.get("verdict") == "completed" and run.extra.get("early_stopped") is True:
        sentence = (
            "Early stopping ended it: the validation was no better for as long as the job waits."
        )
    rank = run.outcome.get("rank")
    lines = [
        ("Cause", run.outcome.get("cause")),
        ("Rank", rank),
        ("To try", run.outcome.get("hint")),
    ]
    told = "".join(
        f"<dt>{name}</dt><dd>{text(value)}</dd>" for name, value in lines if value is not None
    )
    return (
        f'<header><div><p class="kicker">Batchyard run</p><h1>{text(run.job)}</h1>'
        f'<p class="id">{text(run.run_id)}</p></div>{_result(run)}</header>'
        f'<div class="end-of-run {tone}"><p><span class="state">{state}</span> {text(sentence)}</p>'
        f"{f'<dl>{told}</dl>' if told else ''}</div>"
    )


def _result(run: Facts) -> str:
    """The outcome's accuracy; while there is none, the last evaluation's, or its loss.

    Before the end it is said to be so far.
    """
    last = run.last_eval()
    value = finite(run.outcome.get("test_accuracy"))
    value = finite(last.get("accuracy")) if value is None else value
    loss = finite(last.get("loss"))
    if value is None and not last:
        return ""
    done = run.outcome.get("status") == "completed"
    so_far = "" if done else f" so far, at step {last['global_step']:,}" if last else " so far"
    if value is not None:
        figure, name = percent(value), "test accuracy"
    elif "accuracy" in last:
        figure, name, so_far = NONE, "test accuracy", f"{so_far}: not finite"
    elif loss is not None:
        figure, name = number(loss, 4), "test loss"
    else:
        figure, name, so_far = NONE, "test loss", f"{so_far}: not finite"
    return f'<p class="result"><b>{figure}</b> <span class="soft">{name}{so_far}</span></p>'


def _numbers(run: Facts) -> str:
    execution, of_epochs = run.section("execution"), run.section("train").get("epochs")
    epoch = max(
        (e for r in run.train + run.evals if (e := finite(r.get("epoch"))) is not None),
        default=None,
    )
    lasted = [a.lasted_s() for a in run.attempts]
    known = [s for s, _ in lasted if s is not None]
    whole = "" if all(complete for _, complete in lasted) else "at least, "
    timed = next((a for a in reversed(run.attempts) if a.numbers("images_per_s")), None)
    peak = max((v for a in run.attempts for v in a.numbers("peak_memory_mb")), default=None)
    backends = list(
        dict.fromkeys(str(a.record["backend"]) for a in run.attempts if a.record.get("backend"))
    )
    ranks, device = execution.get("ranks"), execution.get("device")
    cells: list[tuple[str, Any, str]] = [
        *_chosen(run),
        ("Steps", shown(run.global_step(), "{:,.0f}".format), ""),
        ("Epochs", shown(epoch), f"of {of_epochs}" if of_epochs else ""),
        (
            "Wall time",
            words.seconds(sum(known)) if known else NONE,
            f"{whole}over {words.plural(len(lasted), 'attempt')}",
        ),
        (
            "Images/s",
            number(median(timed.numbers("images_per_s"))) if timed else NONE,
            "median of the newest attempt",
        ),
        ("Peak memory", shown(peak, words.memory), "of rank 0"),
        ("World size", run.newest("world_size"), f"{ranks} asked for" if ranks else ""),
        ("Threads", execution.get("threads_per_rank"), "a rank"),
        ("Backend", ", ".join(backends) or None, f"device {device}" if device else ""),
    ]
    items = "".join(
        f"<div><dt>{text(name)}</dt><dd><b>{text(value)}</b><span"
        f' class="soft">{text(note)}</span></dd></div>'
        for name, value, note in cells
        if value not in (None, NONE)
    )
    return section(
        "Key numbers",
        f'<dl class="numbers">{items}</dl>' if items else '<p class="soft">None yet.</p>',
        _skipped(run),
    )


def _chosen(run: Facts) -> list[tuple[str, Any, str]]:
    """Top-5 of the newest test evaluation, and the best evaluation of the validation split, with
    the test set's word there.
    """
    last, best = run.last_eval(), run_data.as_row(run.extra.get("best"))
    top5 = shown(last.get("accuracy_top5"), percent)
    as_text = number if best.get("metric") == "loss" else percent
    step, tested = (
        shown(best.get("global_step"), "{:,.0f}".format),
        shown(best.get("test_accuracy"), percent),
    )
    where = f"at step {step}; test {tested}" if tested != NONE else f"at step {step}"
    return [
        ("Top-5", top5, f"test set, at step {last['global_step']:,}" if last else ""),
        (
            "Mean IoU",
            shown(last.get("mean_iou"), percent),
            f"test set, at step {last['global_step']:,}" if last else "",
        ),
        *fit(run),
        (
            f"Best ({best.get('split')} {best.get('metric')})",
            shown(best.get("value"), as_text),
            where,
        ),
    ]


def fit(run: Facts) -> list[tuple[str, Any, str]]:
    """What a linear regression found, beside what made its data and the least loss there is: names,
    values and notes.
    """
    found = run_data.as_row(run.extra.get("linear_fit"))
    w, true = (_numbers_in(found.get(key)) for key in ("w", "true_w"))
    few = len(w) <= MOST_WEIGHTS
    learnt, made = (", ".join(number(v, 5) for v in values) for values in (w, true))
    return [
        ("Learnt w", learnt if w and few else None, f"true: {made}" if true else ""),
        ("Norm of w", shown(found.get("norm_of_w"), number), f"of {len(w):,} weights"),
        (
            "Learnt b",
            shown(found.get("b"), lambda v: number(v, 5)),
            f"true: {shown(found.get('true_b'), number)}" if true else "",
        ),
        (
            "Train loss",
            shown(found.get("train_loss"), lambda v: number(v, 4)),
            f"least squares: {shown(found.get('least_train_loss'), lambda v: number(v, 4))}",
        ),
    ]


def _numbers_in(value: Any) -> list[float]:
    return [v for v in value if finite(v) is not None] if isinstance(value, list) else []


def _skipped(run: Facts) -> str:
    """How many pictures the run left out, where it left out any."""
    count = finite(run.extra.get("skipped_pictures"))
    said = (
        f"Left out, since they could not be used: {words.plural(round(count), 'picture')}."
        if count
        else ""
    )
    return f'<p class="note">{said}</p>' if said else ""


def points(rows: list[Row], key: str) -> list[chart.Point]:
    """(global_step, value) of the rows that have a number there, NaN and infinities too, by step.

    A null is NaN: it was not finite when it was written.
    """
    found = []
    for row in rows:
        value = row.get(key, "missing")
        if value is None or isinstance(value, int | float):
            found.append(
                (float(row["global_step"]), math.nan if value is None else words.as_float(value))
            )
    return sorted(found, key=lambda point: point[0])


def _curves(run: Facts) -> str:
    splits = [s for s in ("val", "test") if any(r.get("split") == s for r in run.evals)]

    def evals(split: str, key: str) -> list[chart.Point]:
        return points([r for r in run.evals if r.get("split") == split], key)

    def both(key: str) -> list[chart.Series]:
        return [
            chart.Series("train", points(run.train, key), "train"),
            *(chart.Series(s, evals(s, key), s) for s in splits),
        ]

    top5 = [chart.Series(f"{s} top-5", evals(s, "accuracy_top5"), f"{s} top5") for s in splits]
    marks = [(step, f"{attempt} from about step {step:,.0f}") for step, attempt in run.continues()]
    ious = [chart.Series(f"{s} mean IoU", evals(s, "mean_iou"), f"{s} top5") for s in splits]
    # not measured: a null would be no NaN
    rates = [row for row in run.train if row.get("lr") is not None]
    plots = [
        chart.Chart("Loss", both("loss"), marks, may_log=True),
        chart.Chart("Accuracy", [*both("accuracy"), *top5, *ious], marks, percent=True),
        chart.Chart("Learning rate", [chart.Series("learning rate", points(rates, "lr"))], marks),
        chart.Chart(
            "Gradient norm",
            [chart.Series("gradient norm", points(run.train, "grad_norm"))],
            marks,
            may_log=True,
        ),
    ]
    figures = "".join(chart.figure(plot) for plot in plots)
    if not figures:
        return section("Curves", '<p class="soft">No metrics yet.</p>')
    said = "; ".join(what for _, what in marks[-MOST_MARKS:])
    earlier = f" the newest {MOST_MARKS} of {len(marks)}:" if len(marks) > MOST_MARKS else ""
    notes = [f"Dotted: where an attempt continued the run:{earlier} {said}."] if marks else []
    longest = max(len(s.points) for plot in plots for s in plot.series)
    if longest > chart.MOST_POINTS:
        notes.append(
            f"Thin lines stand for up to {longest:,} rows: the lowest and the highest of each short"
            " stretch."
        )
    note = f'<p class="note">{text(" ".join(notes))}</p>' if notes else ""
    return section("Curves", f'<div class="charts">{figures}</div>', note, _evaluations(run))


def _evaluations(run: Facts) -> str:
    """The evaluations in figures: what the charts show, for those who want or need the numbers."""
    if not run.evals:
        return ""
    rows = [
        [
            f"{r['global_step']:,}",
            r.get("epoch"),
            r.get("split"),
            shown(r.get("loss"), lambda v: number(v, 4)),
            *(shown(r.get(key), percent) for key in ("accuracy", "accuracy_top5", "mean_iou")),
        ]
        for r in run.evals[-MOST_EVALUATIONS:]
    ]
    heads = [
        ("Step", "figure"),
        ("Epoch", "figure"),
        ("Split", "short"),
        ("Loss", "figure"),
        ("Accuracy", "figure"),
        ("Top-5", "figure"),
        ("Mean IoU", "figure"),
    ]
    told = [i for i in range(len(heads)) if i < 4 or any(row[i] != NONE for row in rows)]
    heads, rows = [heads[i] for i in told], [[row[i] for i in told] for row in rows]
    count = (
        f"the last {len(rows)} of {len(run.evals):,}"
        if len(rows) < len(run.evals)
        else f"{len(rows)}"
    )
    return (
        "<details><summary>Evaluations"
        f" ({count})</summary>{table(heads, rows, 'Evaluations')}</details>"
    )


def _speed(run: Facts) -> str:
    timed = [a for a in run.attempts if a.timing]
    if not timed:
        return section("Speed", '<p class="soft">No timings yet.</p>')
    top = max((v for a in timed for v in a.numbers("images_per_s")), default=0.0)

    def middle(attempt: AttemptFacts, key: str) -> str:
        values = attempt.numbers(key)
        return words.seconds(median(values)) if values else NONE

    rows = []
    for a in timed:
        speed = a.numbers("images_per_s")
        span = f"{number(min(speed))} to {number(max(speed))}" if speed else NONE
        rows.append(
            [
                a.id,
                number(median(speed)) if speed else NONE,
                Html(chart.sparkline(speed, top)),
                span,
                middle(a, "step_time_s"),
                middle(a, "data_wait_s"),
                _share(a),
                shown(max(a.numbers("peak_memory_mb"), default=None), words.memory),
            ]
        )
    heads = [
        ("Attempt", "short"),
        ("Images/s", "figure"),
        ("Over time", "short"),
        ("Range", "figure"),
        ("Step time", "figure"),
        ("Data wait", "figure"),
        ("Share of step", "figure"),
        ("Peak memory", "figure"),
    ]
    note = (
        '<p class="note">Images/s, step time and data wait are medians over the rows of'
        " timing.jsonl.</p>"
    )
    return section("Speed", table(heads, rows, "Speed by attempt"), note)


def _share(attempt: AttemptFacts) -> str:
    """How much of a step is waiting for data: what tells a starved GPU."""
    steps, waits = attempt.numbers("step_time_s"), attempt.numbers("data_wait_s")
    return (
        percent(median(waits) / median(steps), 1) if steps and waits and median(steps) > 0 else NONE
    )


def _attempts(run: Facts) -> str:
    if not run.attempts:
        return section("Attempts", '<p class="soft">No attempts yet.</p>')
    rows = []
    for a in run.attempts:
        newest = a is run.attempts[-1]
        tone, state, _ = _state(a.outcome, running=run.running and newest, started=True)
        cause = (
            f'<span class="soft">{text(a.outcome["cause"])}</span>'
            if a.outcome.get("cause")
            else ""
        )
        lasted, whole = a.lasted_s()
        duration = NONE if lasted is None else f"{'' if whole else '≥ '}{words.seconds(lasted)}"
        verdict = Html(f'<span class="state {tone}">{state}</span>{cause}')
        step = shown(a.outcome.get("global_step"), "{:,.0f}".format)
        started, host, backend = (
            words.moment(a.record.get("started")),
            a.record.get("host"),
            a.record.get("backend"),
        )
        rows.append([a.id, verdict, step, duration, started, backend, host])
    heads = [
        ("Attempt", "short"),
        ("Verdict and cause", "wide"),
        ("Step", "figure"),
        ("Duration", "figure"),
        ("Started (UTC)", "short"),
        ("Backend", "short"),
        ("Host", "short"),
    ]
    return section("Attempts", table(heads, rows, "Attempts"))


def _job(run: Facts) -> str:
    source = (
        f"<pre>{text(run.job_text)}</pre>" if run.job_text else '<p class="soft">No job.yaml.</p>'
    )
    train = run.section("train")
    config = fact_table(flat(train)) if train else '<p class="soft">No config.json.</p>'
    return section(
        "The job",
        f'<div class="pair"><div><h3>job.yaml, as resolved</h3>{source}</div>'
        f"<div><h3>What decides the weights</h3>{config}</div></div>",
    )


def _code(run: Facts) -> str:
    code = fact_table(flat(run.code)) if run.code else '<p class="soft">No code.json.</p>'
    outcome = (
        f"<details><summary>outcome.json</summary>{fact_table(flat(run.outcome))}</details>"
        if run.outcome
        else ""
    )
    return section(
        "The code, and how to get this run again",
        f'<div class="pair"><div><h3>code.json</h3>{code}</div>'
        f"<div><h3>Again</h3>{_again(run)}</div></div>",
        outcome,
    )


def _again(run: Facts) -> str:
    commit = run.code.get("commit")
    lines = [f"git checkout {shlex.quote(str(commit))}"] if commit else []
    # A job is called as its file is, and runs/<id>/job.yaml is called job: hence the copy.
    copy = shlex.quote(f"{run.job}.yaml")
    lines += [
        f"cp {shlex.quote(str(run.path / 'job.yaml'))} {copy}",
        f"batchyard submit {copy} --new",
    ]
    note = ""
    if run.code.get("dirty") or not commit:
        why = (
            "The commit alone is not the code that ran: it had changes."
            if commit
            else "No commit is known."
        )
        note = f'<p class="note">{why} The code that ran is in {text(run.path / "code")}.</p>'
    return f"<pre>{text(chr(10).join(lines))}</pre>{note}"
