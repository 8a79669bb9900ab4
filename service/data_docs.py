"""Great Expectations' Data Docs of one validation as a page that loads nothing.

The sections are those of Great Expectations. Its frame around them is not used: in 1.24 it takes eleven scripts and
style sheets, an icon font and a logo from other people's servers, and is unreadable where they cannot be reached.
"""

from __future__ import annotations

import copy
import html
from typing import Any

from great_expectations.core import ExpectationSuiteValidationResult
from great_expectations.render.renderer import ValidationResultsPageRenderer
from great_expectations.render.view import DefaultJinjaPageView
from jinja2 import ChoiceLoader, DictLoader

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #1a7f37; --bad: #cf222e; }
* { box-sizing: border-box; }
body { margin: 0; font: 15px/1.5 system-ui, sans-serif; display: grid; grid-template-columns: 15rem minmax(0, 1fr); }
aside { position: sticky; top: 0; height: 100vh; overflow: auto; padding: 1.5rem 1rem; }
main { border-left: 1px solid var(--line); }
aside a { display: block; padding: .1rem 0; overflow-wrap: anywhere; color: inherit; text-decoration: none; }
aside a:hover { text-decoration: underline; }
aside label { display: block; margin: 0 0 1rem; }
main { padding: 1.5rem 2rem 4rem; max-width: 75rem; }
.ge-section { margin-bottom: 2rem; }
h1, h4, h5, h6 { font-size: 1.05rem; margin: .5rem 0; }
main > h1 { font-size: 1.4rem; margin: 0 0 1rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid var(--line); }
td { overflow-wrap: anywhere; }
td table { width: auto; margin: .5rem 0; }
td p, td ul { margin: 0; }
pre { overflow: auto; font-size: .8rem; }
.badge { border: 1px solid var(--line); border-radius: .25rem; padding: 0 .3rem; font-size: .85em; }
.text-danger { color: var(--bad); }
.text-success { color: var(--good); }
i { font-style: normal; font-weight: 700; }
i.text-success::before { content: "\\2713"; }
i.text-danger::before { content: "\\2717"; }
i.text-warning::before { content: "!"; color: var(--bad); }
.collapse:not(:target) { display: none; }
body:has(#failed:checked) tr:has(> td i.text-success) { display: none; }
body:has(#failed:checked) .ge-section:has(i.text-success):not(:has(i.text-danger, i.text-warning)) { display: none; }
@media (max-width: 50rem) { body { display: block; } aside { position: static; height: auto; } main { padding: 1rem; } }
"""
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{{ title | e }}</title>
<style>{{ style }}</style>
</head>
<body>
<aside>
<label><input type="checkbox" id="failed"> failed only</label>
{% for section in sections %}<a href="#section-{{ loop.index }}">{{ section["section_name"] | e }}</a>
{% endfor %}
</aside>
<main>
<h1>{{ title | e }}</h1>
{% for section in sections %}
{% set section_loop = loop -%}
{% include "section.j2" %}
{% endfor %}
<footer>Great Expectations {{ ge_version }}</footer>
</main>
</body>
</html>
"""


def page(result: ExpectationSuiteValidationResult) -> str:
    """Return the HTML."""
    counts = result.statistics
    failed, all_ = counts["unsuccessful_expectations"], counts["evaluated_expectations"]
    document = ValidationResultsPageRenderer(run_info_at_end=True).render(_shown(result))
    # The header links to a page of the suite, which is not written, and the run has no name.
    document.sections.pop()
    document.sections[0].content_blocks = document.sections[0].content_blocks[1:]
    view = DefaultJinjaPageView()
    # custom_views_directory of great-expectations 1.24 adds templates, but replaces none.
    view.env.loader = ChoiceLoader([DictLoader({"page.j2": _PAGE}), view.env.loader])
    title = f"{result.suite_name}: {failed} of {all_} expectations failed"
    return str(view.render(document, style=_STYLE, title=title))


def _shown(result: ExpectationSuiteValidationResult) -> ExpectationSuiteValidationResult:
    """Leave out samples of what is allowed to be wrong, and escape the others: 1.24 writes values as HTML."""
    shown = copy.copy(result)
    shown.results = [copy.copy(found) for found in result.results]
    for found in shown.results:
        lists = {key: _escaped(value) for key, value in found.result.items() if isinstance(value, list)}
        found.result = {**found.result, **(dict.fromkeys(lists) if found.success else lists)}
    return shown


def _escaped(value: Any) -> Any:
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    return html.escape(value) if isinstance(value, str) else value
