"""What a run will cost, worked out before it starts. No torch at import."""
