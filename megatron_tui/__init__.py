"""The terminal workbench: what a person sees and does. It holds no tensors and imports no torch."""
