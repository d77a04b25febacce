"""Tests of training in several processes: real ones, over gloo."""
