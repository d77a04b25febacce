"""The prompts of a person, newest last: recalled, searched, and kept between sessions."""

from __future__ import annotations

from megatron_tui.services.preferences import Preferences

NAME = "generation.prompts"
MANY = 300
LONGEST = 4000
"""Characters of a prompt that are kept; a longer one is a text of its own."""
ALL_TOGETHER = 400_000
"""Characters kept in all, well below what the file may hold."""


class PromptHistory:
    """Prompts without doubles; a place in them while one goes up and down."""

    def __init__(self, preferences: Preferences) -> None:
        self._preferences = preferences
        self._place: int | None = None
        self._draft = ""

    @property
    def prompts(self) -> list[str]:
        """All that is kept, oldest first."""
        return self._preferences.get(NAME, list[str]())

    def add(self, prompt: str) -> None:
        """Keep a prompt; it becomes the newest."""
        self._place = None
        if not prompt.strip() or len(prompt) > LONGEST or "\0" in prompt:
            return
        # No file of ours can hold half of a surrogate pair.
        prompt = prompt.encode("utf-8", "replace").decode("utf-8")
        kept = [*[other for other in self.prompts if other != prompt], prompt][-MANY:]
        while sum(map(len, kept)) > ALL_TOGETHER:
            del kept[0]
        self._preferences.set(NAME, kept)

    def older(self, present: str) -> str | None:
        """Return the prompt before; what stands there now is kept for the way back."""
        prompts = self.prompts
        if self._place is None or self._place > len(prompts):
            self._draft, self._place = present, len(prompts)
        if self._place == 0:
            return None
        self._place -= 1
        return prompts[self._place]

    def newer(self) -> str | None:
        """Return the prompt after, at the end what stood there at first."""
        prompts = self.prompts
        if self._place is None or self._place >= len(prompts):
            return None
        self._place += 1
        return prompts[self._place] if self._place < len(prompts) else self._draft

    def search(self, words: str) -> list[str]:
        """Return the prompts that have all the words, newest first."""
        wanted = words.lower().split()
        return [
            prompt
            for prompt in reversed(self.prompts)
            if all(word in prompt.lower() for word in wanted)
        ]
