"""The tables that are moved: a SELECT in a file beside this one, which every DuckDB answers with the same rows."""

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The columns' hashes do not depend on the order of rows, nor on DuckDB's version.
FINGERPRINT = "SELECT count(*) AS n, sum(hash(t))::VARCHAR AS h FROM {} t"
# Divides DuckDB's row group of 122,880 rows.
BATCH_ROWS = 61_440


@dataclass(frozen=True)
class Workload:
    name: str
    rows: int

    @property
    def select(self):
        return (HERE / f"{self.name}.sql").read_text().replace("{rows}", str(self.rows))
