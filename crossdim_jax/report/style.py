"""What the pages look like."""

CSS = """
:root { color-scheme: light; --line: #d9dde2; --soft: #f5f6f8; --grey: #5a6270; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: #1b1f24; line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
header, main, footer { max-width: 62rem; margin: 0 auto; padding: 0 1.2rem; }
header { padding-top: 2rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .7rem; padding-bottom: .25rem;
  border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p, li, dd { overflow-wrap: anywhere; }
.sub, figcaption, footer { color: var(--grey); font-size: .87rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .7rem;
  padding: 0; margin: 1rem 0; list-style: none; }
.cards li { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem; }
.cards b { display: block; font-size: 1.45rem; font-variant-numeric: tabular-nums; }
.cards span { color: var(--grey); font-size: .82rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; margin: .6rem 0; }
dt { color: var(--grey); } dd { margin: 0; }
.tables { display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr));
  gap: 1.2rem 2rem; align-items: start; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .6rem; text-align: right; white-space: nowrap; }
th:first-child { text-align: left; font-weight: normal; }
thead th, thead th:first-child { font-weight: 600; }
thead tr { border-top: 2px solid #1b1f24; border-bottom: 1px solid #1b1f24; }
tbody tr:last-child { border-bottom: 2px solid #1b1f24; }
caption { text-align: left; font-size: .85rem; color: var(--grey); padding-bottom: .3rem; }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; display: block; }
.warn { border-left: 4px solid #c77700; background: #fff6e6; padding: .6rem .9rem; margin: 1rem 0; }
.warn p { margin: 0; } .warn ul { margin: .3rem 0 0; padding-left: 1.2rem; }
details { margin: 1rem 0; } summary { cursor: pointer; }
pre { background: var(--soft); padding: .8rem; overflow-x: auto; font-size: .82rem; }
code { font-size: .92em; background: var(--soft); padding: .05em .25em; overflow-wrap: anywhere; }
footer { padding: 2rem 1.2rem; }
@media screen and (max-width: 44rem) { figure img { max-width: none; width: 42rem; } }
@media (max-width: 30rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; } }
@media print { @page { margin: 15mm; } body { font-size: 10pt; } header, main { padding: 0; }
  figure, table, .cards, .warn { break-inside: avoid; } h2, h3 { break-after: avoid; } }
"""
