"""``edgekit devices``."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli import console


@click.group(
    epilog=console.examples(
        "edgekit devices show                         every phone that is attached",
        "edgekit devices show ssh:pi@raspberrypi      what it is",
        "edgekit devices setup ssh:pi@raspberrypi     ONNX Runtime, once (a phone: --aar FILE)",
        "edgekit devices clean ssh:pi@raspberrypi     removes all of edgekit's files",
    )
)
def devices() -> None:
    """Set up devices that run bundles.

    A target is ssh:[user@]host[:port] (Linux) or adb:SERIAL (Android).
    """


@devices.command("show", epilog=console.examples("edgekit devices show", "edgekit devices show ssh:pi@raspberrypi"))
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@console.json_option
def show_devices(targets: tuple[str, ...], as_json: bool) -> None:
    """Say what each TARGET is, or every phone that is attached: model, cores, instruction sets, memory, emulated?"""
    from edgekit.devices import Target, open_connection
    from edgekit.devices.connection import attached_phones
    from edgekit.devices.probe import probe

    phones = [] if targets else attached_phones()
    ready = targets or tuple(f"adb:{serial}" for serial, state in phones if state == "device")
    known = []
    for target in ready:
        with open_connection(Target.parse(target)) as connection:
            known.append(probe(connection))
    others = {f"adb:{serial}": state for serial, state in phones if state != "device"}
    lines = [line for facts in known for line in facts.lines()]
    lines += [f"{target}: {state}" for target, state in others.items()]
    if not lines:
        lines = ["no phone is attached; give a Linux device as ssh:[user@]host"]
    console.show(lines, {"devices": [facts.to_json() for facts in known], "not_ready": others}, as_json)


@devices.command(
    epilog=console.examples(
        "edgekit devices setup ssh:pi@raspberrypi", "edgekit devices setup adb:SERIAL --aar onnxruntime-android.aar"
    )
)
@click.argument("target")
@click.option(
    "--wheels",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Linux: a directory with the wheels, for hosts without network; by default pip downloads them here.",
)
@click.option(
    "--aar",
    type=console.existing,
    help="Android: ONNX Runtime's package, onnxruntime-android-1.29.0.aar, or a directory that it was unpacked to.",
)
@console.json_option
def setup(target: str, wheels: Path | None, aar: Path | None, as_json: bool) -> None:
    """Install ONNX Runtime on TARGET, in a directory of edgekit's own: no root there, and no network."""
    from edgekit.devices import LOCAL, Target, open_connection
    from edgekit.devices.linux import setup_linux
    from edgekit.devices.phone import setup_android

    parsed = Target.parse(target)
    if parsed.kind == LOCAL:
        raise click.UsageError("TARGET local: is this machine, which has what edgekit was installed with")
    if (wheels and parsed.kind != "ssh") or (aar and parsed.kind != "adb"):
        raise click.UsageError("--wheels is for ssh: targets, --aar for adb: ones")
    with console.progress_bar() as progress, open_connection(parsed) as connection:
        if parsed.kind == "adb":
            installed = setup_android(connection, aar, progress)
        else:
            installed = setup_linux(connection, wheels, progress)
    console.show([f"{target}: {installed}"], {"target": target, "installed": installed}, as_json)


@devices.command(epilog=console.examples("edgekit devices clean ssh:pi@raspberrypi"))
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@console.json_option
def clean(targets: tuple[str, ...], as_json: bool) -> None:
    """Remove everything that edgekit has on each TARGET: bundles, runner, ONNX Runtime."""
    from edgekit.devices import Target, open_connection
    from edgekit.devices.transfer import remove

    directories = {}
    for target in targets:
        with open_connection(Target.parse(target)) as connection:
            remove(connection)
            directories[target] = connection.directory
    console.show((f"{t}: {d} is gone" for t, d in directories.items()), {"removed": directories}, as_json)
