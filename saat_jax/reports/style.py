"""The style sheet of the report's page: one column, light and dark, wide or narrow."""

CSS = """
:root {
  color-scheme: light dark;
  --ground: #ffffff; --ink: #1d2126; --muted: #5a626c; --rule: #e0e3e8; --card: #f5f6f8;
  --bar: #5b97f0; --track: #eceff3; --heat: 59 130 246;
  --good: #12813f; --bad: #c9252d; --on-mark: #ffffff;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14171b; --ink: #e4e7eb; --muted: #9aa3ad; --rule: #2e343b; --card: #1c2026;
    --bar: #3f78cc; --track: #242a31;
    --good: #3fbf76; --bad: #f4686e; --on-mark: #14171b;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  -webkit-text-size-adjust: 100%; overflow-wrap: anywhere;
}
main { max-width: 66rem; margin: 0 auto; padding: 3.5rem 1.5rem 5rem; }
h1, h2, h3 { line-height: 1.2; font-weight: 650; letter-spacing: -0.01em; text-wrap: balance; }
h1 { font-size: clamp(1.7rem, 4.5vw, 2.5rem); margin: 0 0 1rem; }
h2 { font-size: 1.4rem; margin: 4.5rem 0 0.5rem; }
h3 { font-size: 1rem; margin: 2.25rem 0 0.75rem; }
p { margin: 0 0 1rem; max-width: 44rem; }
.kicker, .note, figcaption, caption { color: var(--muted); }
.wide { max-width: none; }
.kicker { margin: 0 0 0.5rem; }
.lead { font-size: 1.2rem; line-height: 1.5; }
.note { font-size: 0.9rem; }
.missing { margin-top: 1.5rem; padding: 1rem 1.25rem; background: var(--card);
  border-radius: 0.6rem; font-size: 0.9rem; }
.missing p { margin: 0; }
.missing ul { margin: 0.25rem 0 0; padding-left: 1.2rem; }

.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: 0.9rem;
  margin: 2rem 0 0; padding: 0; }
.tiles div { padding: 1.15rem 1.25rem 1.2rem; background: var(--card); border-radius: 0.75rem; }
.tiles dt { font-size: 0.9rem; color: var(--muted); }
.tiles dd { margin: 0; }
.tiles .value { font-size: 2.3rem; line-height: 1.25; font-weight: 650; letter-spacing: -0.02em;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.tiles .value small { font-size: 0.5em; font-weight: 500; letter-spacing: 0;
  color: var(--muted); }
.tiles dd + dd { font-size: 0.85rem; color: var(--muted); }

.scroll { overflow-x: auto; margin: 1rem 0; overflow-wrap: normal; }
table { border-collapse: collapse; width: 100%; font-size: 0.94rem;
  font-variant-numeric: tabular-nums; }
caption { caption-side: top; text-align: left; font-size: 0.9rem; padding: 0 0 0.6rem; }
/* Where a table is wider than the screen, its caption is not. */
caption span { display: block; max-width: min(63rem, calc(100vw - 2.2rem)); }
th, td { padding: 0.45rem 0 0.45rem 1.5rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--rule); font-weight: 400; vertical-align: baseline; }
th:first-child, td:first-child { padding-left: 0; text-align: left; }
tbody th[scope=row] { white-space: normal; min-width: 8.5rem; }
thead th { color: var(--muted); font-size: 0.85rem; vertical-align: bottom; }
tbody th[scope=rowgroup] { padding-top: 1.3rem; font-weight: 650; text-align: left; }
.scroll + .scroll { margin-top: 2.5rem; }
.terms { font-size: 0.9rem; }
.terms dt { font-weight: 600; }
.terms dd { margin: 0 0 0.6rem; color: var(--muted); max-width: 44rem; }

.scores { font-size: 0.88rem; }
.scores th, .scores td { padding: 0.3rem 0 0.3rem 1rem; vertical-align: middle; }
.scores th:first-child { padding-left: 0; text-align: left; }
.scores tbody th[scope=row] { min-width: 6.5rem; }
.scores tbody th[scope=rowgroup] { padding-top: 1.3rem; }
.scores thead th { vertical-align: bottom; line-height: 1.3; }
.scores tbody th[scope=rowgroup] span { font-weight: 400; color: var(--muted); }
.scores .word { text-align: left; }
.scores .best > * { font-weight: 650; }
.scores .benign { color: var(--muted); }
.bar > span { position: relative; display: inline-block; width: 7rem; height: 0.85em;
  margin-left: 0.7rem; vertical-align: -0.08em; border-radius: 2px;
  background: linear-gradient(var(--bar) 0 0) 0 0 / var(--value) 100% no-repeat var(--track); }
.benign .bar > span { filter: grayscale(1); }
.bar > span > span { position: absolute; top: -0.15em; bottom: -0.15em; width: 2px;
  margin-left: -1px; background: var(--ink); }
.heat { width: auto; }
.heat td { min-width: 6rem; padding: 0.5rem 0.9rem; border: 3px solid var(--ground);
  text-align: center; background: rgb(var(--heat) / calc(var(--value) * 0.6)); }
.heat th { padding-right: 0.9rem; text-align: center; }
.heat th:first-child { text-align: left; }
.heat .own { outline: 2px solid var(--ink); outline-offset: -2px; }
.learned figure { margin-bottom: 1.5rem; }
.learned > figure img { width: 100%; max-width: 48rem; image-rendering: pixelated; }

.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 25rem), 1fr));
  gap: 2rem 2.5rem; margin-top: 1.5rem; }
figure { margin: 0; }
.charts figcaption { font-size: 0.95rem; font-weight: 600; color: var(--ink);
  padding: 0 0 0.5rem; }
.charts img { display: block; width: 100%; height: auto; }

img { display: block; }
.pixels { image-rendering: pixelated; }
.grid { width: auto; }
.grid th, .grid td { border: 0; padding: 0 0 0.5rem 0.5rem; text-align: left; white-space: normal;
  vertical-align: middle; }
.grid th:first-child { min-width: 5.5rem; padding: 0 0.5rem 0.5rem 0; font-size: 0.9rem; }
.grid thead th { vertical-align: bottom; }
.grid img { width: clamp(3.75rem, 12vw, 8.5rem); border-radius: 2px; }

.compared td { vertical-align: top; }
.compared img { width: clamp(3.75rem, 9vw, 6.5rem); }
.compared img + img { margin-top: 3px; }
.compared thead th { max-width: 7rem; font-size: 0.85rem; }

.query { padding: 1.25rem 0 0.75rem; border-top: 1px solid var(--rule); }
.query h3 { margin: 0 0 1rem; }
.query h3 span { font-weight: 400; color: var(--muted); }
.strip { display: grid; grid-template-columns: 10.5rem 4.35rem 1fr; gap: 0 1rem;
  align-items: start; margin: 0 0 1.1rem; }
.strip p { margin: 0; font-size: 0.9rem; line-height: 1.4; }
.strip p span { display: block; color: var(--muted); }
.strip img { width: 100%; border-radius: 2px; }
.strip ol { display: grid; grid-template-columns: repeat(10, 1fr); gap: 0.4rem; list-style: none;
  margin: 0; padding: 0; }
.strip li { position: relative; padding: 3px; border-radius: 4px; background: var(--bad);
  color: var(--on-mark); }
.strip li.hit { background: var(--good); }
.strip li span { position: absolute; right: 0; bottom: 0; width: 1.15em; height: 1.15em;
  font-size: 0.8rem; line-height: 1.15em; font-weight: 700; text-align: center;
  border-radius: 4px 0 4px 0; background: inherit; }
details { margin-top: 1.25rem; }
summary { cursor: pointer; font-weight: 600; padding: 0.25rem 0; }
summary:focus-visible { outline: 2px solid currentColor; outline-offset: 3px; }
pre { padding: 1rem 1.25rem; background: var(--card); border-radius: 0.6rem; overflow-x: auto;
  font: 0.85rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }

@media (max-width: 44rem) {
  main { padding: 2rem 1.1rem 4rem; }
  h2 { margin-top: 3.25rem; }
  .tiles { grid-template-columns: 1fr 1fr; gap: 0.6rem; }
  .tiles div { padding: 0.9rem 1rem; }
  .tiles .value { font-size: 1.75rem; }
  th, td { padding-left: 0.9rem; }
  .scores th, .scores td { padding-left: 0.6rem; }
  .bar > span { width: 4rem; margin-left: 0.5rem; }
  .strip { grid-template-columns: 1fr 5.6fr; gap: 0.4rem 0.6rem; margin-bottom: 1.5rem; }
  .strip p { grid-column: 1 / -1; }
  .strip p span { display: inline; margin-left: 0.5em; }
  .strip ol { grid-template-columns: repeat(5, 1fr); }
}
@media print {
  main { max-width: none; padding: 0; }
  figure, .query, .strip, tr { break-inside: avoid; }
}
"""

# What the pages of tables, figures and claims need beside it.
SITE_CSS = """
a { color: var(--link); text-underline-offset: 0.15em; text-decoration-thickness: 1px; }
a:hover { text-decoration-thickness: 2px; }
:root { --link: #1d5fc4; }
@media (prefers-color-scheme: dark) { :root { --link: #8ab4f8; } }
nav { margin: 0 0 1.5rem; font-size: 0.9rem; }
.files a + a { margin-left: 1rem; }
.warning { margin: 0 0 1rem; padding: 0.8rem 1.1rem; border-left: 4px solid var(--bad);
  background: var(--card); border-radius: 0.3rem; max-width: none; }

.published { font-size: 0.88rem; width: auto; min-width: 60%; }
.published th, .published td { padding: 0.35rem 0.35rem 0.35rem 0.75rem; vertical-align: top;
  line-height: 1.35; }
.published thead th, .published thead td { vertical-align: bottom; }
.published thead tr:not(:last-child) > * { color: var(--ink); text-align: left; border-bottom: 0;
  padding-bottom: 0; }
.published tbody th { padding-left: 0; }
.published tbody th[scope=row] { position: sticky; left: 0; background: var(--ground);
  padding-right: 0.5rem; min-width: 6rem; max-width: 9rem; }
.published tbody th[scope=rowgroup] span { position: sticky; left: 0; }
.published td b, .published td span { display: block; }
.published td b { font-weight: 650; }
.published td b a { color: inherit; text-decoration-color: var(--muted); }
.published td span { color: var(--muted); font-size: 0.92em; }
.published .first { border-left: 1px solid var(--rule); }

.list td, .list th { vertical-align: top; }
.list td { width: 1%; }
.claims td { width: auto; white-space: normal; }
.list tbody th[scope=row] { text-align: left; min-width: 13rem; white-space: normal; }
.list tbody th span { display: block; color: var(--muted); font-size: 0.85rem; }
.list .word { text-align: left; }
.mark { font-weight: 650; white-space: nowrap; }
.yes { color: var(--good); }
.no { color: var(--bad); }
.open { color: var(--muted); font-weight: 400; }
.roomy { grid-column: 1 / -1; overflow-x: auto; }
.roomy img { min-width: 40rem; }
.charts + .note { margin-top: 1.5rem; }
.thumbs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(45%, 15rem), 1fr));
  gap: 1.5rem; margin-top: 1.25rem; }
.thumbs img { width: 100%; max-height: 12rem; object-fit: contain; object-position: left top; }
.thumbs figcaption { font-size: 0.9rem; padding: 0 0 0.5rem; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: 0.3rem 1.25rem;
  font-size: 0.9rem; margin: 1rem 0; }
.facts dt { color: var(--muted); }
.facts dd { margin: 0; }
@media (max-width: 44rem) {
  .list { font-size: 0.88rem; }
  .list tbody th[scope=row] { min-width: 8.5rem; }
  .list .files a { display: block; margin: 0; }
  .facts { grid-template-columns: 1fr; gap: 0; }
  .facts dd { margin-bottom: 0.5rem; }
}
"""
