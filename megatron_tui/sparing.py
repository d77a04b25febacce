"""Redraw less than Textual does: only the widgets in which something changed are gone through.

Textual renders every widget between the topmost and the lowest change anew, several times a second
for a line at the top and one at the bottom. It shares a core with the training.
"""

from __future__ import annotations

from collections.abc import Iterable

from textual._compositor import ChopsUpdate, Compositor
from textual.geometry import Region
from textual.strip import Strip


class SparingCompositor(Compositor):
    """Renders the rows of a change by themselves, and no widget that is not in them."""

    def render_partial_update(self) -> ChopsUpdate | None:
        """Return an update of the dirty regions, or None if there are none."""
        screen = self.size.region
        regions = [region.intersection(screen) for region in self._dirty_regions]
        regions = [region for region in regions if region]
        self._dirty_regions.clear()
        if not regions:
            return None
        spans = list(self._regions_to_spans(regions))
        touched = {y for y, _, _ in spans}
        chops = None
        for band in bands(regions):
            rendered = self._render_chops(band, touched.__contains__)
            if chops is None:
                chops = list(rendered)
            else:
                chops[band.y : band.bottom] = rendered[band.y : band.bottom]
        assert chops is not None
        return ChopsUpdate(chops, spans, [cuts[1:] for cuts in self.cuts])

    def _get_renders(
        self, crop: Region | None = None
    ) -> Iterable[tuple[Region, Region, list[Strip]]]:
        if crop is None:
            yield from super()._get_renders(crop)
            return
        for widget, (region, clip) in self.visible_widgets.items():
            shown = region.intersection(clip)
            if not crop.overlaps(shown):
                continue
            # Whole rows of the widget: its cuts must be where the screen has them.
            top, bottom = max(shown.y, crop.y), min(shown.bottom, crop.bottom)
            rows = Region(shown.x, top, shown.width, bottom - top)
            yield region, rows, widget.render_lines(rows.translate(-region.offset))
            if shown.contains_region(crop):
                return  # what is behind it cannot be seen


def bands(regions: Iterable[Region]) -> list[Region]:
    """Return regions that hold all of `regions` and have no row in common, from the top down."""
    found: list[Region] = []
    for region in sorted(regions, key=lambda region: region.y):
        if found and region.y < found[-1].bottom:
            found[-1] = found[-1].union(region)
        else:
            found.append(region)
    return found
