"""The keys of the Training screen, in the order in which the bar at the bottom shows them."""

from __future__ import annotations

from textual.binding import Binding, BindingType

PANELS = ("loss", "now", "metrics", "sample", "log", "ranks")
"""The panels by their ids; their numbers are the keys that show and hide them."""

RUN_KEYS: list[BindingType] = [
    Binding("space", "pause", "Pause", tooltip="Pause or go on", id="training.pause"),
    Binding("w", "command('save')", "Save", tooltip="Save now", id="training.save"),
    Binding(
        "e",
        "command('evaluate')",
        "Evaluate",
        tooltip="Measure the validation loss now",
        id="training.evaluate",
    ),
    Binding("g", "command('sample')", "Sample", tooltip="Write a sample", id="training.sample"),
    Binding(
        "C",
        "change",
        "Change",
        tooltip="Change the learning rate or the number of steps",
        id="training.change",
    ),
    Binding(
        "d",
        "detach",
        "Detach",
        tooltip="Let the run go on in a process of its own",
        id="training.detach",
    ),
    Binding(
        "d",
        "take_back",
        "Take back",
        tooltip="Train the run here, in place of the other process",
        id="training.take_back",
    ),
    Binding("S", "stop", "Stop", tooltip="End the run, saved or not", id="training.stop"),
    Binding("r", "resume", "Resume", tooltip="Train further", id="training.resume"),
    Binding(
        "F",
        "fork",
        "Fork",
        tooltip="Start a new run from the checkpoint nearest to the cursor",
        id="training.fork",
    ),
    Binding("c", "compare", "Compare", tooltip="Lay other runs over it", id="training.compare"),
    Binding("n", "next_alert", "Alert", tooltip="Go to the next alert", id="training.alert"),
]

CHART_KEYS: list[BindingType] = [
    Binding("L", "log_scale", "Log", tooltip="Logarithmic loss on or off", id="chart.log"),
    Binding(
        "x", "x_axis", "Axis", tooltip="Steps, time or characters along the bottom", id="chart.axis"
    ),
    Binding("Y", "unit", "Unit", tooltip="Nats, bits or perplexity", id="chart.unit"),
    Binding("P", "raw", "Raw", tooltip="Show or hide the reports as they came", id="chart.raw"),
    Binding(
        "plus",
        "smooth(1)",
        "Smooth",
        key_display="+",
        tooltip="Smooth the train loss more",
        id="chart.smoother",
    ),
    Binding(
        "minus",
        "smooth(-1)",
        "Smooth",
        key_display="-",
        tooltip="Smooth the train loss less",
        id="chart.rougher",
    ),
    Binding(
        "0",
        "reset",
        "Smooth",
        tooltip="Back to the whole run where it is zoomed, else no smoothing",
        id="chart.reset",
    ),
    Binding("h", "cursor(-1)", "Cursor", tooltip="Read values further left", id="chart.left"),
    Binding("l", "cursor(1)", "Cursor", tooltip="Read values further right", id="chart.right"),
    Binding(
        "right_square_bracket",
        "zoom(1)",
        "Zoom",
        key_display="]",
        tooltip="Look closer at the stretch around the cursor",
        id="chart.closer",
    ),
    Binding(
        "left_square_bracket",
        "zoom(-1)",
        "Zoom",
        key_display="[",
        tooltip="Look from further away",
        id="chart.wider",
    ),
    Binding(
        "left_curly_bracket",
        "pan(-1)",
        "Pan",
        show=False,
        tooltip="Half a stretch to the left",
        id="chart.pan_left",
    ),
    Binding(
        "right_curly_bracket",
        "pan(1)",
        "Pan",
        show=False,
        tooltip="Half a stretch to the right",
        id="chart.pan_right",
    ),
    Binding(
        "underscore",
        "references",
        "Baselines",
        tooltip="Show or hide ln V and the entropies of the text",
        id="chart.baselines",
    ),
    Binding(
        "full_stop",
        "redraw_rate",
        "Redraws",
        show=False,
        key_display=".",
        tooltip="Draw the run less often, or as often as the line allows",
        id="chart.redraws",
    ),
    Binding(
        "m", "metric(1)", "Metric", tooltip="Memory, gradient, rate or speed", id="chart.metric"
    ),
    Binding(
        "M",
        "metric(-1)",
        "Metric",
        show=False,
        tooltip="The measurement before",
        id="chart.metric_back",
    ),
]

PANEL_KEYS: list[BindingType] = [
    Binding("left", "scrub(-1)", "Film", tooltip="The sample before", id="film.back"),
    Binding("right", "scrub(1)", "Film", tooltip="The sample after", id="film.on"),
    Binding("home", "scrub(-1000000)", show=False, tooltip="The first sample", id="film.first"),
    Binding("end", "scrub(1000000)", show=False, tooltip="Follow the newest", id="film.newest"),
    Binding(
        "enter", "zoom_panel", "Large", tooltip="The panel with the focus alone", id="panel.zoom"
    ),
    Binding("escape", "back", show=False, tooltip="All panels, no cursor", id="panel.back"),
    *(
        Binding(
            str(number),
            f"panel('{name}')",
            f"Panel {name}",
            show=False,
            tooltip=f"Show or hide the panel: {name}",
            id=f"panel.{name}",
        )
        for number, name in enumerate(PANELS, 1)
    ),
]
