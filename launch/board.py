r"""Makes a page of a folder of cards, to sort and to filter, from a file or a web server.

saat-jax card runs/demo --output cards
saat-jax board cards --output cards/board.html
"""

import pathlib

from launch import terminal


def main(arguments: list[str] | None = None) -> None:
    """Writes the page and says where it lies.

    Raises:
        ValueError: if there are no cards, or some are damaged: which, and what is wrong with each.
    """
    parser = terminal.make_parser("board", __doc__)
    add = parser.add_argument
    add("folder", type=pathlib.Path, metavar="FOLDER", help="of the cards")
    add("--output", type=pathlib.Path, help="page; by default FOLDER/board.html")
    options = parser.parse_args(arguments)
    # Imported here, so that a wrong flag is answered at once.
    from saat_jax import reports

    path = options.output or options.folder / "board.html"
    number = reports.write_board(options.folder, path)
    print(f"board of {number} cards: {path}")
