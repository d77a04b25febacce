"""What every screen stands in: header, key bar, help, palette, first frame."""
