r"""Writes the cards of a run or an audit: one JSON for each judged model and each size of change.

    saat-jax card runs/demo
    saat-jax card runs/audit --output cards --page ../runs/audit/report.html

A card has the clean and the worst-case score with intervals, flags, the suite, the digest of the
weights and the command that makes it all again. `saat-jax board` puts a folder of them on a page.
"""

import os
import pathlib

from launch import terminal


def main(arguments: list[str] | None = None) -> None:
    """Writes the cards and says where they lie.

    Raises:
        ValueError: if the folder holds nothing that was judged, or a file of it is damaged.
    """
    parser = terminal.make_parser("card", __doc__)
    add = parser.add_argument
    add("workdir", type=pathlib.Path, metavar="WORKDIR", help="folder of the run or the audit")
    add("--output", type=pathlib.Path, help="folder of the cards; by default WORKDIR/cards")
    add("--command", default="", help="what made the run, if its folder does not say")
    add("--dataset", default="", help="name of an audit's images; by default their folder's")
    add(
        "--page",
        help="address of the run's page, seen from the board; by default WORKDIR's; '' for none",
    )
    options = parser.parse_args(arguments)
    terminal.quiet()
    # Imported here, so that a wrong flag is answered at once.
    from saat_jax import pipeline, reports

    output = options.output or options.workdir / "cards"
    page = options.page
    if page is None and (report := options.workdir / "report.html").is_file():
        page = pathlib.Path(os.path.relpath(report, output)).as_posix()
    given = {"command": options.command, "dataset": options.dataset, "page": page or None}
    for card in pipeline.make_cards(str(options.workdir), **given):
        path = output / f"{card.stem}.json"
        reports.write_card(card, path)
        print(f"card: {path}")
