"""`completion`: print what makes a shell complete this command, from the parser as it is.

Of our own: it has to know presets, settings and the names of runs, which are asked for by
``runs --names`` whenever they are needed. No name is ever expanded by a shell.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from megatron_model.config.fields import all_fields
from megatron_model.config.presets import AUTO, PRESETS
from megatron_model.data.corpus import BUILTIN_CORPORA
from megatron_model.run.facts import KINDS

EXAMPLES = """\
megatron-model completion bash > ~/.local/share/bash-completion/completions/megatron-model
megatron-model completion zsh > ~/.zfunc/_megatron-model
megatron-model completion fish > ~/.config/fish/completions/megatron-model.fish
"""

_NAME = "megatron-model"
_Kind: TypeAlias = Literal["words", "runs", "models", "files", "corpus", "folders", "none"]


class _Place(NamedTuple):
    """An option, or a positional argument, and what can stand there."""

    names: tuple[str, ...]
    """``--set``, say; none of a positional argument."""
    help: str
    kind: _Kind | None
    """None of an option that takes nothing."""
    words: tuple[str, ...]
    many: bool
    """Whether more of its kind may follow."""


class _Verb(NamedTuple):
    name: str
    help: str
    options: list[_Place]
    positions: list[_Place]

    @property
    def taking(self) -> list[str]:
        """The options that have a value behind them."""
        return [name for each in self.options if each.kind is not None for name in each.names]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("shell", choices=tuple(_SCRIPTS), help="which shell")


def run(options: argparse.Namespace) -> int:
    """Print the script of a shell."""
    print(_SCRIPTS[options.shell](list(_verbs())), end="")
    return 0


def _verbs() -> Iterator[_Verb]:
    from megatron_model.cli.parser import build_parser

    for action in build_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {each.dest: each.help or "" for each in action._choices_actions}
            for name, parser in action.choices.items():
                places = [_place(each) for each in parser._actions]
                yield _Verb(
                    name,
                    helps[name],
                    [each for each in places if each.names],
                    [each for each in places if not each.names],
                )


def _place(action: argparse.Action) -> _Place:
    kind, words = _what_stands_there(action)
    return _Place(
        tuple(action.option_strings),
        action.help or "",
        None if action.option_strings and action.nargs == 0 else kind,
        words,
        action.nargs in ("*", "+", argparse.REMAINDER),
    )


def _what_stands_there(action: argparse.Action) -> tuple[_Kind, tuple[str, ...]]:
    if action.choices is not None:
        return "words", tuple(map(str, action.choices))
    match action.dest, action.metavar:
        case "preset", _:
            return "words", (*PRESETS, AUTO)
        case (("set" | "change"), _):
            return "words", tuple(f"{key}=" for key in all_fields())
        case _, "KEY":
            return "words", tuple(all_fields())
        case _, "COLUMN":
            return "words", (*KINDS, *all_fields())
        case _, "RUN":
            return "runs", ()
        case _, "MODEL":
            return "models", ()
        case _, "CORPUS":
            return "corpus", ()
        case "runs_dir", _:
            return "folders", ()
    return ("files" if action.type is Path else "none"), ()


# --- bash ---------------------------------------------------------------------------------------

_BASH = """\
# Completion of megatron-model for bash.
_megatron_model_words() {
    local word
    for word in "$@"; do
        [[ $word == "$current"* ]] && COMPREPLY+=("$word")
    done
    [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2>/dev/null
}

_megatron_model_runs() {
    local name
    while IFS= read -r name; do
        [[ $name == "$current"* ]] && COMPREPLY+=("$(printf %q "$name")")
    done < <(megatron-model runs --names "${place[@]}" 2>/dev/null)
}

_megatron_model_files() {
    local name
    compopt -o filenames 2>/dev/null
    while IFS= read -r name; do
        COMPREPLY+=("$name")
    done < <(compgen "$1" -- "$current")
}

_megatron_model() {
    local current=$2 before=$3 verb=${COMP_WORDS[1]} index=0 word
    local place=()
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        _megatron_model_words @verbs@
        return
    fi
    if [[ $current == "=" ]]; then
        current=
    elif [[ $before == "=" ]]; then
        before=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    for ((word = 2; word < COMP_CWORD; word++)); do
        case ${COMP_WORDS[word]} in
            @taking@)
                [[ ${COMP_WORDS[word + 1]} == "=" ]] && ((word++))
                [[ ${COMP_WORDS[word]} == --runs-dir || ${COMP_WORDS[word - 1]} == --runs-dir ]] &&
                    place=(--runs-dir "${COMP_WORDS[word + 1]}")
                ((word++))
                ;;
            -*) ;;
            *) ((index++)) ;;
        esac
    done
    case "$verb $before" in
@values@
    esac
    if [[ $current == -* ]]; then
        case $verb in
@options@
        esac
        return
    fi
    case "$verb $index" in
@positions@
    esac
}

complete -F _megatron_model megatron-model
"""


def _bash(verbs: list[_Verb]) -> str:
    values, options, positions = [], [], []
    for verb in verbs:
        for each in verb.options:
            if each.kind is not None:
                patterns = "|".join(f'"{verb.name} {name}"' for name in each.names)
                values.append(f"        {patterns}) {_bash_of(each)}; return ;;")
        names = " ".join(name for each in verb.options for name in each.names)
        options.append(f"            {verb.name}) _megatron_model_words {names} ;;")
        for index, each in enumerate(verb.positions):
            pattern = f'"{verb.name} "*' if each.many else f'"{verb.name} {index}"'
            positions.append(f"        {pattern}) {_bash_of(each)} ;;")
    taking = sorted({name for verb in verbs for name in verb.taking})
    return _filled(
        _BASH,
        verbs=" ".join(verb.name for verb in verbs),
        taking="|".join(taking),
        values="\n".join(values),
        options="\n".join(options),
        positions="\n".join(positions),
    )


def _bash_of(place: _Place) -> str:
    match place.kind:
        case "words":
            return f"_megatron_model_words {' '.join(place.words)}"
        case "runs":
            return "_megatron_model_runs"
        case "models":
            return "_megatron_model_runs; _megatron_model_files -f"
        case "corpus":
            return f"_megatron_model_words {' '.join(BUILTIN_CORPORA)}; _megatron_model_files -f"
        case "files":
            return "_megatron_model_files -f"
        case "folders":
            return "_megatron_model_files -d"
        case _:
            return ":"


# --- zsh ----------------------------------------------------------------------------------------

_ZSH = """\
#compdef megatron-model
# Completion of megatron-model for zsh: a file _megatron-model in a folder of $fpath.
_megatron_model_runs() {
    local -a names place
    local index=${words[(I)--runs-dir]}
    ((index)) && place=(--runs-dir ${words[index + 1]})
    names=(${(f)"$(megatron-model runs --names $place 2>/dev/null)"})
    compadd -a names
}

_megatron_model_models() {
    _megatron_model_runs
    _files
}

_megatron_model_corpus() {
    compadd @builtin@
    _files
}

_megatron_model() {
    local context state line
    local -a verbs
    verbs=(
@verbs@
    )
    _arguments -C '1:verb:->verb' '*::argument:->argument'
    case $state in
        verb) _describe verb verbs ;;
        argument)
            case $words[1] in
@arguments@
            esac
            ;;
    esac
}

if [[ $funcstack[1] == _megatron-model ]]; then
    _megatron_model "$@"
else
    compdef _megatron_model megatron-model
fi
"""


def _zsh(verbs: list[_Verb]) -> str:
    arguments = []
    for verb in verbs:
        specs = []
        for each in verb.options:
            value = "" if each.kind is None else f":value:{_zsh_of(each)}"
            specs += [_quoted(f"{name}[{_plain(each.help)}]{value}") for name in each.names]
        for index, each in enumerate(verb.positions):
            where = "*" if each.many else str(index + 1)
            specs.append(_quoted(f"{where}:argument:{_zsh_of(each)}"))
        joined = " \\\n                        ".join(specs)
        arguments.append(f"                {verb.name})\n                    _arguments {joined}")
        arguments.append("                    ;;")
    return _filled(
        _ZSH,
        builtin=" ".join(BUILTIN_CORPORA),
        verbs="\n".join(f"        {_quoted(f'{v.name}:{_plain(v.help)}')}" for v in verbs),
        arguments="\n".join(arguments),
    )


def _zsh_of(place: _Place) -> str:
    match place.kind:
        case "words":
            return f"({' '.join(place.words)})"
        case "runs" | "models" | "corpus":
            return f"_megatron_model_{place.kind}"
        case "files":
            return "_files"
        case "folders":
            return "_files -/"
        case _:
            return " "


# --- fish ---------------------------------------------------------------------------------------


def _fish(verbs: list[_Verb]) -> str:
    names = " ".join(verb.name for verb in verbs)
    first = f"complete -c {_NAME} -n 'not __fish_seen_subcommand_from {names}'"
    lines = ["# Completion of megatron-model for fish.", f"complete -c {_NAME} -f"]
    lines += [f"{first} -a {verb.name} -d {_quoted(_plain(verb.help))}" for verb in verbs]
    for verb in verbs:
        here = f"complete -c {_NAME} -n '__fish_seen_subcommand_from {verb.name}'"
        for each in verb.options:
            flags = " ".join(f"-{'l' if n[1] == '-' else 's'} {n.lstrip('-')}" for n in each.names)
            value = "" if each.kind is None else f" -r{_fish_of(each)}"
            lines.append(f"{here} {flags}{value} -d {_quoted(_plain(each.help))}")
        lines += [here + _fish_of(each) for each in verb.positions if _fish_of(each)]
    return "\n".join(lines) + "\n"


def _fish_of(place: _Place) -> str:
    match place.kind:
        case "words":
            return f" -a {_quoted(' '.join(place.words))}"
        case "runs":
            return f" -a '({_NAME} runs --names 2>/dev/null)'"
        case "models":
            return f" -F -a '({_NAME} runs --names 2>/dev/null)'"
        case "corpus":
            return f" -F -a {_quoted(' '.join(BUILTIN_CORPORA))}"
        case "files":
            return " -F"
        case "folders":
            return " -a '(__fish_complete_directories)'"
        case _:
            return ""


_SCRIPTS = {"bash": _bash, "zsh": _zsh, "fish": _fish}


def _filled(script: str, **parts: str) -> str:
    for name, text in parts.items():
        script = script.replace(f"@{name}@", text)
    return script


def _plain(text: str) -> str:
    """Return a help text without the signs that zsh reads."""
    return " ".join(text.translate(dict.fromkeys(map(ord, "[]:'\\"), " ")).split())


def _quoted(text: str) -> str:
    return f"'{text}'"
