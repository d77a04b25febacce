"""What only a CUDA card can show: `make check-gpu`."""
