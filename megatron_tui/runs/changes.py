"""The questions behind the keys that change runs in a list, and what the answers do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from textual.app import App

from megatron_model.run.about import About, check_about, read_about, with_tags, write_about
from megatron_model.run.archive import archive_run, bring_back, is_archived
from megatron_model.run.comparison import FORMS, read_run, write_table
from megatron_model.run.folder import RunFolder, check_run_name
from megatron_model.run.rename import rename_run
from megatron_model.util.errors import RequestError
from megatron_model.util.text import plural, safe
from megatron_tui.terminal.editor import NoEditorError, edit
from megatron_tui.ui.ask_values import AskValues, Question
from megatron_tui.ui.dialogs import Confirm
from megatron_tui.ui.pick import AskPath, write_where

PAGE = ".html"
"""The ending of a page that reports runs over each other."""
NAMED = 8
"""So many runs are named in a question."""


class RunChanges:
    """Asks what needs to be known, does it to one run after the other, and says what cannot be.

    Args:
        app: shows the questions.
        changed: called when something was, with the folders that are no more where they were.
        say: says a sentence; the flag tells whether it is a complaint.
    """

    def __init__(
        self,
        app: Callable[[], App[Any]],
        changed: Callable[[Sequence[RunFolder]], object],
        say: Callable[[str, bool], object],
    ) -> None:
        self._app, self._changed, self._say = app, changed, say
        self._aside: list[list[RunFolder]] = []
        """What was put aside in this session, the last last: each can be undone."""

    @property
    def undoable(self) -> bool:
        """Whether something was put aside that can be brought back."""
        return bool(self._aside)

    def tag(self, folders: Sequence[RunFolder]) -> None:
        """Ask for tags to put on and take off."""

        def changed(values: Mapping[str, str], folder: RunFolder) -> None:
            words = values["tags"].replace(",", " ").split()
            write_about(folder, with_tags(read_about(folder), words))

        def check(values: Mapping[str, str]) -> None:
            check_about(with_tags(About(), values["tags"].replace(",", " ").split()))

        def take(values: dict[str, str] | None) -> None:
            if values is not None and values["tags"]:
                self._each(folders, lambda folder: changed(values, folder))

        tags = list(dict.fromkeys(tag for folder in folders for tag in read_about(folder).tags))
        now = f"Now: {', '.join(tags)}. " if tags else ""
        self._app().push_screen(
            AskValues(
                f"Tag {_named(folders)}",
                f"{now}Words put tags on, with a dash in front they take them off.",
                [Question("tags", "tags", "")],
                check,
                yes="Tag",
            ),
            take,
        )

    def note(self, folder: RunFolder) -> None:
        """Have the note written in the person's editor, or asked for where there is none."""
        before = read_about(folder)
        try:
            note = edit(self._app(), before.note, "note")
        except NoEditorError:
            self._ask_note(folder)
            return
        except RequestError as error:
            self._say(str(error), True)
            return
        if note != before.note:
            self._each([folder], lambda one: _write_note(one, note))

    def _ask_note(self, folder: RunFolder) -> None:
        def take(values: dict[str, str] | None) -> None:
            if values is not None and values["note"] != before:
                self._each([folder], lambda one: _write_note(one, values["note"]))

        before = safe(read_about(folder).note, one_line=True)
        self._app().push_screen(
            AskValues(
                f"A note on {_named([folder])}",
                "With EDITOR set, it is written there.",
                [Question("note", "note", before)],
                lambda values: check_about(About(note=values["note"])),
                yes="Write down",
            ),
            take,
        )

    def rename(self, folder: RunFolder) -> None:
        """Ask for another name."""

        def take(values: dict[str, str] | None) -> None:
            if values is not None and values["name"] != folder.name:
                self._each([folder], lambda one: rename_run(one, values["name"]), moved=True)

        def check(values: Mapping[str, str]) -> None:
            if values["name"] != folder.name:
                check_free(folder.path.parent, values["name"])

        self._app().push_screen(
            AskValues(
                f"Rename {_named([folder])}",
                "Its folder gets the name.",
                [Question("name", "name", folder.name)],
                check,
                yes="Rename",
            ),
            take,
        )

    def delete(self, folders: Sequence[RunFolder]) -> None:
        """Ask, then delete."""

        def delete(confirmed: bool | None) -> None:
            if confirmed:
                self._each(folders, lambda folder: folder.delete(), moved=True)

        one = len(folders) == 1
        listed = "" if one else f"{_names(folders)}. "
        whose = "Its" if one else "Their"
        self._app().push_screen(
            Confirm(
                f"Delete {_named(folders)}?",
                f"{listed}{whose} checkpoints, log and settings are deleted. This cannot be "
                "undone; archiving them (a) can.",
                yes="Delete",
                no="Keep",
                danger=True,
            ),
            delete,
        )

    def archive(self, folders: Sequence[RunFolder]) -> None:
        """Put runs aside, or bring back those that were."""
        moved: list[RunFolder] = []

        def move(folder: RunFolder) -> None:
            if is_archived(folder):
                bring_back(folder)
            else:
                moved.append(archive_run(folder))

        done = self._each(folders, move, moved=True)
        if moved:
            self._aside.append(moved)
            self._say(f"Archived {_named(moved)}; u brings back, v shows what is archived.", False)
        elif done:
            self._say(f"Brought back {_named(done)}.", False)

    def undo(self) -> None:
        """Bring back what was put aside last."""
        if self._aside:
            there = [folder for folder in self._aside.pop() if folder.path.exists()]
            done = self._each(there, bring_back, moved=True)
            if done:
                self._say(f"Brought back {_named(done)}.", False)

    def export(self, folders: Sequence[RunFolder]) -> None:
        """Ask for a file, and write one page, or the table of what differs, of all."""

        def write(path: Path) -> None:
            if path.suffix.lower() == PAGE:
                from megatron_model.interop.report import write_report

                write_report(list(folders), path)
            else:
                write_table(path, [read_run(folder) for folder in folders])

        def take(typed: str, again: bool) -> str:
            if not typed.lower().endswith((PAGE, *FORMS)):
                return f"It must end in {PAGE}, a page to read, or {' or '.join(FORMS)}, a table."
            return write_where(typed, again, write)

        def tell(typed: str | None) -> None:
            if typed is not None:
                self._say(f"Wrote {typed}", False)

        first = safe(folders[0].name, one_line=True) if len(folders) == 1 else "runs"
        title = f"Write {_named(folders)} to {PAGE}, {' or '.join(FORMS)}"
        self._app().push_screen(AskPath(title, f"{first}{PAGE}", take), tell)

    def _each(
        self,
        folders: Sequence[RunFolder],
        change: Callable[[RunFolder], object],
        *,
        moved: bool = False,
    ) -> list[RunFolder]:
        """Do something to each; what cannot be is said, and the others go on."""
        done, problems = [], []
        for folder in folders:
            try:
                change(folder)
                done.append(folder)
            except RequestError as error:
                problems.append(str(error))
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            self._say(problems[0] + more, True)
        self._changed(done if moved else [])
        return done


def _write_note(folder: RunFolder, note: str) -> None:
    write_about(folder, replace(read_about(folder), note=note))


def check_free(runs_dir: Path, name: str) -> None:
    """Raise `RequestError` where no run can get this name, or one has it."""
    check_run_name(name)
    if (runs_dir / name).exists():
        raise RequestError(f'A run named "{name}" exists; choose another name.')


def _named(folders: Sequence[RunFolder]) -> str:
    one = len(folders) == 1
    return safe(folders[0].name, one_line=True) if one else plural(len(folders), "run")


def _names(folders: Sequence[RunFolder]) -> str:
    names = [safe(folder.name, one_line=True) for folder in folders[:NAMED]]
    more = len(folders) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")
