"""What people look at after a run: pages, charts, tables, logged numbers.

    page.py      ``write_report``: one self-contained HTML page. Every report of the package is
                 written through it
    tables.py    ``markdown_table``: rows as Markdown, for pages in Markdown and for the console
    curves.py    which curves a run has (``run_curves``), and charts of them as a PNG
    writers.py   what training logs: ``metrics.jsonl`` and TensorBoard files (``make_writers``), and
                 reading the numbers back (``read_metrics``)

What goes onto a page is decided where it is measured: ``evaluate/tokenizer_report.py``,
``evaluate/generator_report.py``, ``evaluate/protocols/report.py``, ``plan/report.py``. Contact
sheets and side-by-side videos are made by ``media``.
"""
