"""Open the workbench on what was named on the command line: a run, a corpus, or nothing yet."""

from __future__ import annotations

from pathlib import Path

from megatron_model.run_folder import RunFolder, default_runs_dir
from megatron_tui.app import MegatronApp
from megatron_tui.preferences import Preferences
from megatron_tui.workbench import Workbench


def make_app(
    runs_dir: Path | None = None, target: str | None = None, *, frames_first: bool = False
) -> MegatronApp:
    """Return the app for a session on `runs_dir`; `target` is a run to open or a corpus to choose.

    Raises:
        RequestError: `target` is neither.
    """
    import platformdirs

    workbench = Workbench(runs_dir or default_runs_dir(), preferences=Preferences.of_user())
    app = _app_for(workbench, target, frames_first=frames_first)
    app.keys_path = platformdirs.user_config_path("megatron") / "keys.toml"
    return app


def _app_for(workbench: Workbench, target: str | None, *, frames_first: bool) -> MegatronApp:
    run, corpus = None, ""
    paths = (workbench.runs_dir / target, Path(target)) if target else ()
    for path in paths:
        if run is None and (path / "run.toml").is_file():
            run = RunFolder.open(path)
    if target and run is None:
        from megatron_model.corpus import find_corpus

        find_corpus(target)
        corpus = target
    return MegatronApp(workbench, run=run, corpus=corpus, frames_first=frames_first)
