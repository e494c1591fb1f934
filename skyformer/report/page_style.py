"""The looks of the report's page: light and dark, on a phone and in print."""

STYLE = """
:root { --ink: #1a1a1a; --dim: #595959; --line: #d0d0d0; --paper: #fff; --shade: #f5f5f5; --warn: #8a3b00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --dim: #a8a8a8; --line: #444; --paper: #161616; --shade: #222; --warn: #ffb37a; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
.wide { overflow-x: auto; }
.wide:focus-visible, summary:focus-visible { outline: 2px solid #0072B2; outline-offset: 2px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
th, td { padding: .35rem .7rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line); }
td { white-space: nowrap; }
thead th { border-bottom: 2px solid var(--ink); vertical-align: bottom; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); min-width: 7rem; }
tbody th { max-width: 16rem; overflow-wrap: break-word; }
tbody th { font-weight: 600; }
small { display: block; color: var(--dim); font-size: .8rem; }
.long { white-space: normal; min-width: 9rem; }
.notes { color: var(--dim); font-size: .85rem; max-width: 60rem; overflow-wrap: anywhere; }
.notes p { margin: .5rem 0; }
.problems { border-left: 4px solid var(--warn); padding-left: 1rem; overflow-wrap: anywhere; }
figure { margin: 0; background: #fff; border-radius: 4px; overflow-x: auto; }
img { display: block; width: 100%; min-width: 34rem; height: auto; }
details { border-bottom: 1px solid var(--line); }
summary { cursor: pointer; padding: .4rem 0; }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin: 0 .4em; border: 1px solid #8888; }
dl { display: grid; grid-template-columns: 8.5rem 1fr; gap: .1rem .8rem; margin: .3rem 0 1rem; font-size: .85rem; }
dt { color: var(--dim); }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) { tbody th { max-width: 9rem; } dl { grid-template-columns: 1fr; } dd { margin: 0 0 .4rem; } }
@media print {
  :root { --ink: #000; --dim: #444; --line: #bbb; --paper: #fff; --shade: #fff; }
  main { max-width: none; padding: 0; } .wide, figure { overflow: visible; } img { min-width: 0; }
  table { font-size: 7.5pt; } small { font-size: 6.5pt; } th, td { padding: 2pt 4pt; } td { white-space: normal; }
  th:first-child { position: static; }
  tr, figure, .notes p, details { break-inside: avoid; } h2 { break-after: avoid; }
}
"""
