"""A process that runs the cells of a study one after the other, so that imports are paid for once.

It reads one line of JSON a cell from standard input and answers with one on standard output. Where its input ends, the
process that started it is gone: it saves what it has, and ends.
"""

import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memax_rl import signals


def run_cell(folder: Any, cell: Any, imports: Sequence[str] = (), trust: bool = False) -> dict[str, Any]:
    """Run a cell to its end, from where it is.

    Args:
        folder: The study's `Folder`.
        cell: The `Cell`.
        imports: Packages that its configuration may cause to be imported.
        trust: Whether it may import all.

    Returns:
        `outcome`: "finished", "busy" (another process runs it) or "failed", then with a `message`.

    Raises:
        KeyboardInterrupt: After the state was saved because of Ctrl-C or SIGTERM.
    """
    from memax_rl import cache, probes
    from memax_rl.envs.trust import only_imports
    from memax_rl.training import train

    cache.turn_on()
    with folder.lock(cell.name) as held:
        if not held:
            return {"outcome": "busy"}
        if folder.is_finished(cell):
            return {"outcome": "finished"}
        try:
            run = folder.begun(cell)
            if isinstance(cell.config, probes.ProbeConfig):
                target = {"resume": run.folder} if run is not None else {"out": folder.path / cell.name}
                probes.train(None if run is not None else cell.config, **target)
            elif run is not None:
                train(resume=run.folder, imports=imports, trust=trust)
            else:
                with only_imports(imports, trust=trust):
                    train(cell.config, out=folder.path / cell.name)
        except Exception as error:
            # Whatever a cell does, the others go on.
            message = " ".join(str(error).split()) or type(error).__name__
            about = {"message": message, "kind": type(error).__name__, "traceback": traceback.format_exc()}
            folder.write_failure(cell, about)
            return {"outcome": "failed", "message": message}
        folder.forget_failure(cell)
        return {"outcome": "finished"}


def main() -> int:
    """Run the cells that standard input names, and return the exit status."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    # What a cell prints is no answer.
    os.dup2(2, 1)
    setup = json.loads(sys.stdin.readline())
    sys.path += [path for path in setup["path"] if path not in sys.path]
    jobs: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(jobs,), daemon=True).start()
    with signals.exit_at_once():
        from memax_rl.envs.trust import import_modules, only_imports
        from memax_rl.studies.folder import Folder
        from memax_rl.studies.grid import Cell, read_config

        imports, trust = tuple(setup["imports"]), bool(setup["trust"])
        folder = Folder(Path(setup["folder"]))
        with only_imports(imports, trust=trust):
            import_modules(imports)
        while line := jobs.get():
            job = json.loads(line)
            try:
                with only_imports(imports, trust=trust):
                    cell = Cell(job["name"], job["group"], read_config(job["config"]))
                answer = run_cell(folder, cell, imports, trust)
            except KeyboardInterrupt as stop:
                return 128 + getattr(stop, "number", signal.SIGINT)
            answers.write(json.dumps(answer) + "\n")
    return 0


def _read(jobs: "queue.Queue[str]") -> None:
    """Hand on the lines of standard input; at its end stop what runs."""
    for line in sys.stdin:
        jobs.put(line)
    jobs.put("")
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
