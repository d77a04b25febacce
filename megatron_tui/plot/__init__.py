"""Charts as rows of coloured text: the one place that knows plotext."""
