"""``edgekit generate``."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import click

from edgekit.cli import console
from edgekit.spec.names import NEW_TOKENS

DRAWING = ("temperature", "top_k", "top_p", "repetition_penalty", "seed")
"""How tokens are drawn."""


@click.command(
    epilog=console.examples(
        'edgekit generate build/model "What is the capital of France?"',
        'edgekit generate build/model "Once upon a time" --raw --temperature 0.7 --seed 1',
        'edgekit generate build/model "And then?" --session chat.session',
        'edgekit generate build/smolvlm "What is in the picture?" --image cat.png',
        'edgekit generate build/m2m100 "Hello" --begin __de__',
        "edgekit generate build/whisper --audio speech.wav",
        'edgekit generate build/model "Hello" --target ssh:pi@raspberrypi',
    )
)
@click.argument("bundle", type=console.path)
@click.argument("prompt", default="")
@click.option(
    "--image",
    "images",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A picture for a model that takes such (may be given several times); in a chat it stands before PROMPT.",
)
@click.option("--audio", type=console.path, metavar="FILE.wav", help="What is said in it, in place of PROMPT.")
@click.option("--max-new-tokens", "-n", default=NEW_TOKENS, type=click.IntRange(1), help="Stop after so many.")
@click.option("--raw", is_flag=True, help="Continue the text as it stands, without the chat template.")
@click.option("--system", help="A system message for the chat template.")
@click.option("--begin", default="", metavar="TEXT", help="What an answer starts with, such as a language's token.")
@click.option("--stop", multiple=True, help="Stop at this text (may be given several times).")
@click.option("--temperature", default=0.0, type=float, help="0 takes the likeliest token.")
@click.option("--top-k", default=0, type=int, help="0 considers all tokens.")
@click.option("--top-p", default=1.0, type=float, help="1 considers all tokens.")
@click.option("--repetition-penalty", default=1.0, type=float, help="1 is none.")
@click.option("--seed", type=int, help="Same seed, same text.")
@click.option(
    "--lookup",
    default=0,
    type=click.IntRange(0, 64),
    metavar="N",
    help="Propose up to N tokens at a time that followed the same words before (without temperature and penalty only); "
    "faster where the answer repeats the prompt, the same text up to rounding.",
)
@click.option(
    "--beams", default=1, type=int, metavar="N", help="Beam search with N answers at a time (translators, speech)."
)
@click.option(
    "--session",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Go on from the text or chat saved in FILE, if it is there, and save it again at the end, with its cache.",
)
@click.option("--target", default="local", help="Where to run: local, ssh:[user@]host[:port] or adb:SERIAL.")
@console.threads_option
@console.json_option
def generate(
    bundle: Path,
    prompt: str,
    raw: bool,
    lookup: int,
    beams: int,
    session: Path | None,
    target: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Generate text from PROMPT.

    It streams to stdout. Ctrl-C ends it at once; what there is, is shown and saved."""
    console.quiet_libraries()
    from edgekit.bundle import Bundle
    from edgekit.devices import LOCAL, Target
    from edgekit.runtime.generation import GREEDY
    from edgekit.runtime.interruptible import interruptible
    from edgekit.runtime.sampling import Sampling

    sampling = Sampling(**{name: options.pop(name) for name in DRAWING})
    opened, where = Bundle.open(bundle), Target.parse(target)
    options["chat"] = False if raw else None
    if sampling == GREEDY and not lookup and beams == 1 and session is None:
        from edgekit.devices.generation import generate_on

        with console.progress_bar() as progress:
            running = generate_on(where, opened, prompt, **options, progress=progress)
    elif where.kind == LOCAL:
        from edgekit.runtime.generation import generate as run

        running = run(opened, prompt, sampling=sampling, lookup=lookup, beams=beams, session=session, **options)
    else:
        raise click.UsageError(
            f"--target {target} takes the likeliest token each time; leave out sampling, --lookup, --beams and --session"
        )
    pieces: list[str] = []
    interrupted = False
    with closing(interruptible(running)) as stream:
        try:
            for piece in stream:
                pieces.append(piece)
                if not as_json:
                    click.echo(console.printable(piece), nl=False)
        except KeyboardInterrupt:
            interrupted = True
    facts = {
        "prompt_tokens": running.prompt_tokens,
        "reused_tokens": running.reused_tokens,
        "new_tokens": len(running.tokens),
        "finish": running.finish,
        "prefill_tokens_per_second": round(running.prefill_tokens_per_second, 2),
        "decode_tokens_per_second": round(running.decode_tokens_per_second, 2),
        **({"proposed_tokens": running.proposed_tokens, "accepted_tokens": running.accepted_tokens} if lookup else {}),
    }
    console.show([""], {"text": "".join(pieces), "tokens": running.tokens, **facts}, as_json)
    click.echo(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items()), err=True)
    if interrupted:
        click.get_current_context().exit(console.INTERRUPTED)
