"""``python -m megatron_model`` is ``megatron-model``."""

from megatron_model.cli import main

if __name__ == "__main__":
    main()
