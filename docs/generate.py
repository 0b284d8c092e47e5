"""Write the tables of docs/settings.md and docs/metrics.md anew: `python docs/generate.py`.

Only what stands between the two markers is replaced; the prose around it is written by hand.
tests/test_docs.py fails while a table is not what the code says.
"""

from __future__ import annotations

from pathlib import Path

from radixserve import config_table, metrics_table

DOCS = Path(__file__).parent
BEGIN, END = "<!-- generated: begin -->\n", "<!-- generated: end -->\n"
TABLES = {"settings.md": config_table.markdown, "metrics.md": metrics_table.markdown}


def main() -> None:
    """Replace every table."""
    for name, table in TABLES.items():
        before, _, rest = (DOCS / name).read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        (DOCS / name).write_text(f"{before}{BEGIN}{table()}{END}{after}")


if __name__ == "__main__":
    main()
