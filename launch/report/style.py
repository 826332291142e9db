"""The page's CSS: one sheet, two palettes, no address in it. tests/test_report.py measures the
contrast of both.
"""

# One colour a line; c0 to c4, for values in their order, go from blue to yellow and get lighter.
# Text and lines reach 4.5:1 on the background (WCAG 2.2, 1.4.3), the grid is only decoration.
LIGHT = """
--back: #ffffff; --panel: #f6f7f9; --text: #16191d; --soft: #59616c; --rule: #dfe3e8;
--grid: #e9ecf0;
--train: #1d63c4; --test: #b4490f; --val: #0f766e; --plain: #4b4fb8; --odd: #b42318;
--c0: #14287a; --c1: #7b2bb8; --c2: #b0307f; --c3: #c2402a; --c4: #986000;
--good: #14703a; --warn: #8a5800; --bad: #b42318; --info: #1d63c4; --deepest: 70%;
"""
DARK = """
--back: #14171b; --panel: #1c2026; --text: #e8eaed; --soft: #a2abb7; --rule: #30363e;
--grid: #252a31;
--train: #79b0ff; --test: #ffa766; --val: #4fd1bd; --plain: #b3b5ff; --odd: #ff8a80;
--c0: #a97be8; --c1: #dd6fb0; --c2: #f2836f; --c3: #fbb04a; --c4: #f4ea6a;
--good: #5fd38d; --warn: #e8b84a; --bad: #ff8a80; --info: #79b0ff; --deepest: 48%;
"""

RULES = """
* { box-sizing: border-box; }
html { color-scheme: light dark; -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 72rem; padding: 2.5rem 2rem 3rem; background: var(--back);
  color: var(--text);
  overflow-wrap: break-word;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans",
  sans-serif; }
h1, h2, h3, h4, p, dl, dd, ul, figure, pre { margin: 0; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -.015em; overflow-wrap: anywhere; }
h2 { font-size: 1.125rem; margin-bottom: 1rem; }
h3, h4 { font-size: .9375rem; }
code, pre, .id { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono",
  monospace;
  font-size: .875em; overflow-wrap: anywhere; }
header { display: flex; flex-wrap: wrap; justify-content: space-between; align-items: flex-end;
  gap: 1.25rem 3rem; }
.kicker, .soft, .note, .id, footer { color: var(--soft); }
.kicker, .note, .scale, footer { font-size: .8125rem; }
.result { text-align: right; }
.result b { display: block; font-size: 2.75rem; line-height: 1.1; letter-spacing: -.03em;
  font-variant-numeric: tabular-nums; }
.end-of-run { margin-top: 1.5rem; padding: .875rem 1.125rem; background: var(--panel);
  border-radius: .5rem;
  border-left: .25rem solid var(--tone); }
.end-of-run dl { display: grid; grid-template-columns: auto 1fr; gap: .25rem 1rem;
  margin-top: .5rem; }
.end-of-run dt { color: var(--soft); }
.end-of-run dd, td.wide { white-space: pre-wrap; overflow-wrap: anywhere; }
.state { font-weight: 600; color: var(--tone); white-space: nowrap; }
.end-of-run .state { white-space: normal; }
.good { --tone: var(--good); } .warn { --tone: var(--warn); } .bad { --tone: var(--bad); }
.info { --tone: var(--info); }
section { margin-top: 2.5rem; padding-top: 1.5rem; border-top: 1px solid var(--rule); }
.numbers { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 1.25rem 2.5rem; }
.numbers dt, .numbers .soft { display: block; font-size: .8125rem; line-height: 1.4;
  color: var(--soft); }
.numbers dd b { display: block; font-size: 1.375rem; line-height: 1.3; font-weight: 600;
  letter-spacing: -.01em;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 2rem 2.5rem; }
figcaption { display: flex; flex-wrap: wrap; align-items: baseline; gap: .125rem .75rem;
  margin-bottom: .5rem; }
.scale { color: var(--soft); }
.legend { display: flex; flex-wrap: wrap; gap: 0 1rem; margin-left: auto; padding: 0;
  list-style: none;
  font-size: .8125rem; }
.legend li { display: flex; align-items: center; gap: .375rem; color: var(--soft); }
.swatch { width: 22px; height: 10px; }
.plot { display: block; width: 100%; height: auto; overflow: visible; }
.plot text { font-size: 11.5px; fill: var(--soft); font-variant-numeric: tabular-nums; }
.plot .x { text-anchor: middle; }
.plot .y { text-anchor: end; dominant-baseline: central; }
.plot .end { font-weight: 600; fill: var(--line); dominant-baseline: central; }
.grid { stroke: var(--grid); } .axis { stroke: var(--rule); fill: none; }
.line { fill: none; stroke: var(--line); stroke-width: 1.75; stroke-linejoin: round;
  stroke-linecap: round; }
.dense { stroke-width: 1; stroke-opacity: .8; }
circle { fill: var(--line); stroke: var(--back); }
.odd { fill: none; stroke: var(--odd); stroke-width: 1.5; }
.mark { stroke: var(--soft); stroke-dasharray: 2 3; fill: none; }
.train { --line: var(--train); } .test { --line: var(--test); } .val { --line: var(--val); }
.plain, .spark { --line: var(--plain); } .top5 .line { stroke-dasharray: 5 4; }
.c0 { --line: var(--c0); } .c1 { --line: var(--c1); } .c2 { --line: var(--c2); }
.c3 { --line: var(--c3); }
.c4 { --line: var(--c4); }
.one .line { stroke-width: 1.125; stroke-opacity: .8; } .one circle { stroke: none; }
.best { --line: var(--text); } .best .line { stroke-width: 2.75; }
tr.best > * { font-weight: 600; background: var(--panel); }
.scroll + h3 { margin-top: 1.5rem; }
a { color: var(--info); text-underline-offset: .15em; }
.note { margin-top: .25rem; } .charts + .note, .numbers + .note { margin-top: 1.25rem; }
.charts ~ .losses { margin-top: 1.75rem; }
.spark { width: 7.5rem; height: 1.625rem; vertical-align: middle; }
.spark .line { stroke-width: 1.25; }
/* A shade at the side where a table goes on: the covers scroll with it, the shades stay. */
.scroll { overflow-x: auto; background:
  linear-gradient(90deg, var(--back) 40%, transparent) 0 0 / 2.5rem 100% no-repeat local,
  linear-gradient(-90deg, var(--back) 40%, transparent) 100% 0 / 2.5rem 100% no-repeat local,
  linear-gradient(90deg, var(--rule), transparent) 0 0 / .875rem 100% no-repeat scroll,
  linear-gradient(-90deg, var(--rule), transparent) 100% 0 / .875rem 100% no-repeat scroll; }
table { border-collapse: collapse; width: 100%; font-size: .875rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .5rem 1rem .5rem 0; border-bottom: 1px solid var(--rule); text-align: left;
  vertical-align: top; }
thead th { color: var(--soft); font-weight: 500; white-space: nowrap; }
tbody th { font-weight: 500; } .group th { padding-top: 1.25rem; font-weight: 600; }
.group .soft { font-weight: 400; }
.figure, thead .figure { text-align: right; white-space: nowrap; }
.short { white-space: nowrap; }
td.wide { min-width: 18rem; }
td.wide .soft, .end-of-run dd .soft { display: block; }
.facts th { width: 40%; color: var(--soft); }
.facts th, .facts td { padding-top: .3125rem; padding-bottom: .3125rem; }
.facts td { overflow-wrap: anywhere; }
.under { margin: .125rem 0 .875rem; } section > details > .under { margin-top: 0; }
h4 + .scroll { margin: .25rem 0 1.25rem; }
.name { width: 25%; min-width: 7rem; overflow-wrap: anywhere; }
.share { width: 32%; min-width: 10rem; padding-left: 1.25rem; }
.rate { display: flex; align-items: center; gap: .875rem; }
.rate > :first-child { flex: 0 0 3.25rem; text-align: right; }
.bar { flex: 1; height: .5rem; background: var(--grid); border-radius: .25rem; overflow: hidden; }
.bar span { display: block; height: 100%; background: var(--train); }
.confusion { margin-top: 1.75rem; } .confusion .note { margin-top: .75rem; }
.right { --tone: var(--train); } .wrong { --tone: var(--test); }
/* The text keeps its colour: even the deepest cell leaves it a contrast of 4.5:1. */
.heat.right, .heat.wrong { background: color-mix(in srgb,
  var(--tone) calc(var(--share) * var(--deepest)), var(--back)); }
.heat.none { color: var(--soft); }
.legend .heat { width: .875rem; height: .875rem; border-radius: .1875rem; }
.matrix { --names: 9rem; min-width: calc(var(--columns) * var(--column) + var(--names));
  max-width: calc(var(--columns) * 6rem + var(--names)); font-size: .8125rem;
  table-layout: fixed; border-collapse: separate; border-spacing: 2px; }
.matrix th, .matrix td { border: 0; padding: .375rem 0; text-align: center; vertical-align: middle;
  }
.matrix .truth { width: var(--names); padding-right: .75rem; text-align: left; }
.matrix thead th { vertical-align: bottom; } .matrix td { border-radius: .1875rem; }
.matrix th span { display: block; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.matrix .predicted { padding-left: .375rem; text-align: left; }
.matrix .on-end span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 8rem;
  margin: 0 auto; }
.matrix tbody th { position: sticky; left: 0; background: var(--back); }
.cells { display: block; width: 100%; min-width: 42rem; height: auto; }
.cells text { font-size: 8px; fill: var(--soft); text-anchor: end; dominant-baseline: central; }
.cells .column { text-anchor: start; }
.cells rect { width: 10px; height: 10px; fill: var(--tone); } .ground { fill: var(--panel); }
.gallery + * { margin-top: 2rem; } .gallery h3:has(+ .pictures) { margin-bottom: .75rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(7.25rem, 1fr));
  gap: 1.25rem 1rem; }
.pictures img { display: block; object-fit: contain; object-position: left bottom;
  border-radius: .25rem; }
.pictures figcaption { display: block; margin: .375rem 0 0; font-size: .8125rem; line-height: 1.35;
  color: var(--soft);
  overflow-wrap: anywhere; }
.pictures b { font-weight: 600; color: var(--text); } .pictures span { display: block; }
.scenes .pictures { grid-template-columns: repeat(3, minmax(0, 1fr)); max-width: 52rem;
  margin-bottom: 1.25rem; }
.scenes img { width: 100%; height: auto; } .colours { margin: .5rem 0 1rem; }
.colours .swatch { width: .875rem; height: .875rem; border-radius: .1875rem; }
.pixels { image-rendering: pixelated; }
.pair { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 2rem 2.5rem;
  align-items: start; }
.pair h3 { margin-bottom: .5rem; }
pre { padding: .875rem 1.125rem; background: var(--panel); border-radius: .5rem;
  white-space: pre-wrap; line-height: 1.55; }
details { margin-top: 1.5rem; } summary { cursor: pointer; font-weight: 600; font-size: .9375rem;
  margin-bottom: .5rem; }
summary:focus-visible, .scroll:focus-visible { outline: 2px solid var(--info); outline-offset: 3px;
  }
footer { margin-top: 2.5rem; padding-top: 1rem; border-top: 1px solid var(--rule);
  overflow-wrap: anywhere; }
@media (max-width: 46rem) {
  body { padding: 1.5rem 1rem 2rem; } h1 { font-size: 1.625rem; }
  .result { text-align: left; } .result b { font-size: 2.25rem; }
  .charts, .pair { grid-template-columns: minmax(0, 1fr); }
  .numbers { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .plot text { font-size: 14px; } /* the picture is scaled down: these are about 11 px */
  td.wide { min-width: 13rem; }
  .pictures { grid-template-columns: repeat(auto-fill, minmax(6rem, 1fr)); }
  .matrix { --names: 6.5rem; --column: var(--narrow) !important; }
  .matrix thead span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 8rem;
  margin: 0 auto; }
}
@media print { body { max-width: none; padding: 0; } figure, tr { break-inside: avoid; }
  .heat, .bar, .bar span { print-color-adjust: exact; } }
"""

CSS = f":root {{{LIGHT}}}\n@media (prefers-color-scheme: dark) {{ :root {{{DARK}}} }}{RULES}"
