"""Undo and redo of the Setup form: every state it had, and where in them it is. Pure."""

from __future__ import annotations

from megatron_tui.ui.draft import SetupDraft

LONGEST = 500


class DraftHistory:
    """The drafts of a session. What is typed in one go is one step back."""

    def __init__(self, draft: SetupDraft) -> None:
        self._drafts = [draft]
        self._place = 0
        self._group = ""

    @property
    def draft(self) -> SetupDraft:
        """The present one."""
        return self._drafts[self._place]

    @property
    def undoable(self) -> bool:
        """Whether there is an earlier draft."""
        return self._place > 0

    @property
    def redoable(self) -> bool:
        """Whether there is a later draft."""
        return self._place + 1 < len(self._drafts)

    def put(self, draft: SetupDraft, group: str = "") -> None:
        """Make `draft` the present one; drafts of one group that follow each other are one step."""
        if draft == self.draft:
            return
        del self._drafts[self._place + 1 :]
        if group and group == self._group and self._place:
            self._drafts[-1] = draft
            if draft == self._drafts[-2]:
                self._drafts.pop()  # typed and taken back: nothing happened
        else:
            self._drafts.append(draft)
        del self._drafts[:-LONGEST]
        self._place = len(self._drafts) - 1
        self._group = group

    def replace_present(self, draft: SetupDraft) -> None:
        """Put another draft in place of the present one: a change that was not made by hand."""
        self._drafts[self._place] = draft

    def end_group(self) -> None:
        """Let the next change be a step of its own."""
        self._group = ""

    def undo(self) -> bool:
        """Go one step back; say whether there was one."""
        if not self.undoable:
            return False
        self._place -= 1
        self._group = ""
        return True

    def redo(self) -> bool:
        """Go one step forward; say whether there was one."""
        if not self.redoable:
            return False
        self._place += 1
        self._group = ""
        return True
