"""Write the tables of docs/settings.md, docs/metrics.md and docs/models.md anew: `python
docs/generate.py`. That of models is made from the results that `benchmarks/families.py` left.

Only what stands between the two markers is replaced; the prose around it is written by hand.
tests/test_docs.py fails while a table is not what the code says.
"""

from __future__ import annotations

import sys
from pathlib import Path

from radixserve import config_table, metrics_table

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import families_table

DOCS = Path(__file__).parent
BEGIN, END = "<!-- generated: begin -->\n", "<!-- generated: end -->\n"
TABLES = {
    "settings.md": config_table.markdown,
    "metrics.md": metrics_table.markdown,
    "models.md": families_table.markdown,
}


def main() -> None:
    """Replace every table."""
    for name, table in TABLES.items():
        before, _, rest = (DOCS / name).read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        (DOCS / name).write_text(f"{before}{BEGIN}{table()}{END}{after}")


if __name__ == "__main__":
    main()
