r"""Writes a model of a run as a folder: config.json, model.safetensors, README.md and card.json.

    saat-jax export runs/demo hardened models/digits
    saat-jax audit --config audit:encoder --config.encoder=models/digits --config.images=FOLDER

`saat_jax.load_encoder("models/digits")` reads it. It has the layout of Hugging Face's hub, so that
its `hf upload` takes it as it is. A folder that is there already is never replaced.
"""

from launch import terminal


def main(arguments: list[str] | None = None) -> None:
    """Writes the folder and says where it lies.

    Raises:
        ValueError: if there is no such run or model, or the folder is there already.
    """
    parser = terminal.make_parser("export", __doc__)
    add = parser.add_argument
    add("workdir", metavar="WORKDIR", help="folder of the run")
    add("model", metavar="MODEL", help="such as pretrained or hardened")
    add("folder", metavar="FOLDER", help="to be made")
    add("--command", default="", help="what made the run, for the card, if its folder does not say")
    options = parser.parse_args(arguments)
    terminal.quiet()
    # Imported here, so that a wrong flag is answered at once.
    from saat_jax import pipeline

    made = pipeline.export_model(
        options.workdir, options.model, options.folder, command=options.command
    )
    print(f"model: {made}")
