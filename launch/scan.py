r"""Looks for hubs in a database of codes: codes that lie near far more queries than others.

    saat-jax scan codes.faiss --radius 10
    saat-jax scan codes.npy --radius 31 --queries queries.npy --out suspects.csv
    saat-jax scan "host=/tmp dbname=postgres" --table images --column code --radius 10

Reads a binary index of faiss, a NumPy file of packed or ±1 codes, or a column of PostgreSQL's type
bit.
"""

import csv
import io
import pathlib
import sys

from launch import terminal


def main(arguments: list[str] | None = None) -> None:
    """Scans the codes, prints a table of suspects, and writes it if asked to.

    Raises:
        ValueError: if there are no codes, or a number is none.
    """
    parser = terminal.make_parser("scan", __doc__)
    add = parser.add_argument
    add("source", help="file of codes, or address of a server if --table is given")
    add("--radius", type=int, required=True, help="bits in which what is found may differ")
    add("--queries", help="file of past queries' codes, instead of a sample of the database")
    add("--table", help="table of PostgreSQL")
    add("--column", default="code", help="its column of codes, of the type bit")
    add("--key", default="id", help="its column of names")
    add("--sample", type=int, default=5000, help="so many codes are drawn to be counted")
    add("--alert_rate", type=float, default=0.001, help="share of the codes that may be suspects")
    add("--seed", type=int, default=0, help="of the draw")
    add("--out", type=pathlib.Path, help="CSV of the suspects")
    options = parser.parse_args(arguments)
    # Imported here, so that a wrong flag is answered at once.
    from saat_jax import files, retrieval
    from saat_jax.reports import tables

    if options.table:
        place = {"table": options.table, "column": options.column, "key": options.key}
        stored = retrieval.read_table(options.source, **place)
    else:
        stored = retrieval.read_codes(options.source)
    queries = options.queries and retrieval.read_codes(options.queries).packed
    found = retrieval.scan(
        stored.packed,
        num_bits=stored.num_bits,
        radius=options.radius,
        queries=queries,
        num_sampled=options.sample,
        alert_rate=options.alert_rate,
        seed=options.seed,
    )
    heads = [options.key, "neighbours", "above the median", "kinds"]
    rows = [
        [
            str(stored.names[row]),
            str(found.neighbours[row]),
            f"{found.score[row]:.1f}",
            f"{found.spread[row]:.1f}",
        ]
        for row in found.suspects.tolist()
    ]
    told = (
        f"{len(stored.packed):,} codes of {stored.num_bits} bits, radius {found.radius}, "
        f"{found.num_sampled:,} sampled: {len(rows)} suspects"
    )
    text = "\n".join([told, *(tables.aligned([heads, *rows[:20]]) if rows else [])])
    print(tables.for_terminal(text, sys.stdout.encoding))
    if options.out:
        buffer = io.StringIO()
        csv.writer(buffer).writerows([heads, *rows])
        files.write_bytes(options.out, buffer.getvalue().encode())
