"""The commands. Each is a frozen dataclass whose fields are its options, and a function that does the work.

A user's mistake is one line on stderr and exit code 2, never a traceback; Ctrl-C is exit code 130. Nothing heavy is
imported before a command runs, so that `carrara --help` is immediate.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from carrara.cli.datasets import data
from carrara.cli.evaluation import evaluate
from carrara.cli.models import info
from carrara.cli.telling import one_line, tell
from carrara.cli.training import train
from carrara.core.config import choose
from carrara.generation.command import generate
from carrara.generation.explain_command import explain
from carrara.generation.lora_command import lora

USAGE = """usage: carrara COMMAND ...

An open text-to-video diffusion system.

  generate "PROMPT" ...   make clips from text; --from FILE makes a clip again
  explain "PROMPT" ...    see a clip emerge from noise, and what its patches attend to
  info MODEL              what a model is, makes and knows
  train RECIPE            train a model, or a part of one
  evaluate MODEL          measure a model; --clips DIR measures any videos
  systems                 the systems in one table at equal compute; --run DIR makes it anew
  lora merge ADAPTER ...  adapters: into a model's weights, for other programs, explained
  data pond DIR           write clips of the simulated world, with captions and truth
  data prepare SRC DST    prepare your own videos for training; data inspect DST looks at them

`carrara COMMAND --help` lists a command's options; `carrara --version` the version."""


def main(args: Sequence[str] | None = None) -> None:
    """Run a command line and exit."""
    # Threads that wait for work by spinning make everything many times slower where other programs want the cores too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, when torch is imported
    raise SystemExit(run(list(sys.argv[1:] if args is None else args)))


def run(args: list[str]) -> int:
    """Run a command line and return its exit code."""
    try:
        return _dispatch(args)
    except KeyboardInterrupt:
        print("\ncarrara: interrupted", file=sys.stderr)
        return 130
    except SystemExit as stop:  # help was printed
        return int(stop.code or 0)
    except BrokenPipeError:  # the reader of our output has gone: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, RuntimeError, MemoryError, OSError) as error:
        if os.environ.get("CARRARA_DEBUG"):
            raise
        mistake = isinstance(error, ValueError)
        tell(one_line(error))
        return 2 if mistake else 1


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE, file=sys.stdout if args else sys.stderr)
        return 0 if args else 2
    if args[0] == "--version":
        import carrara

        print(carrara.__version__)
        return 0
    return choose("command", args[0], COMMANDS)(args[1:])


def systems(args: list[str]) -> int:
    """`carrara systems`."""
    from carrara.generation.measured import MeasuredClips
    from carrara.recipes.systems_command import systems as table

    return table(args, MeasuredClips.open)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "generate": generate,
    "explain": explain,
    "info": info,
    "train": train,
    "evaluate": evaluate,
    "systems": systems,
    "data": data,
    "lora": lora,
}
