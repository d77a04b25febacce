"""Tests of megatron_model."""
