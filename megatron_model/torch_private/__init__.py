"""Every private part of torch that is relied on, with the versions that it was tried with.

Each has a test in ``tests/model/torch_private`` that fails, and names torch's version, when the
part changes. Nothing else in the packages may touch such a part.
"""
