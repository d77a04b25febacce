"""The training step of the modern transformer on a CPU: torch's products, C kernels between them.

Forward and backward pass are written out by hand over memory that is kept from step to step; what
lies between the matrix products is a few kernels in plain C, compiled once on a machine in a few
seconds for all shapes. `step` is the door: whole updates, gradients alone, the loss of blocks.
"""
